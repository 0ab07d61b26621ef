// TLS serves HTTPS from all children with one certificate.
//
// main runs in the master and in every child. What must happen once belongs in
// the master: here it makes a self-signed certificate and leaves the folder's
// name in the environment, which children inherit. They load the same files.
//
//	go run ./examples/tls
//
// Try, in another terminal:
//
//	curl -k https://127.0.0.1:3443/
//	kill <the master>              # the folder is removed
package main

import (
	"cmp"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"log"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/gofiber/fiber/v3"

	"github.com/fiber-prefork/prefork"
)

const certDir = "EXAMPLE_CERT_DIR" // from the master to the children

func main() {
	if err := run(); err != nil {
		log.Fatal(err)
	}
}

func run() error {
	addr := cmp.Or(os.Getenv("ADDR"), "127.0.0.1:3443")

	if !prefork.IsChild() {
		dir, err := os.MkdirTemp("", "prefork-tls-")
		if err != nil {
			return err
		}
		defer func() { _ = os.RemoveAll(dir) }()
		if err := writeCertificate(dir); err != nil {
			return err
		}
		if err := os.Setenv(certDir, dir); err != nil {
			return err
		}
	}
	dir := os.Getenv(certDir)

	app := prefork.New()

	app.Get("/", func(c fiber.Ctx) error {
		return c.SendString(fmt.Sprintf("%s from pid %d\n", c.Scheme(), os.Getpid()))
	})

	return app.Listen(addr, prefork.ListenConfig{
		EnablePrefork: true,
		CertFile:      filepath.Join(dir, "cert.pem"),
		CertKeyFile:   filepath.Join(dir, "key.pem"),
	})
}

// writeCertificate writes cert.pem and key.pem, good for a day, to dir.
func writeCertificate(dir string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()),
		Subject:      pkix.Name{CommonName: "localhost"},
		DNSNames:     []string{"localhost"},
		IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore:    time.Now().Add(-time.Minute),
		NotAfter:     time.Now().Add(24 * time.Hour),
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return err
	}
	keyBytes, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	for name, block := range map[string]*pem.Block{
		"cert.pem": {Type: "CERTIFICATE", Bytes: cert},
		"key.pem":  {Type: "PRIVATE KEY", Bytes: keyBytes},
	} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			return err
		}
	}
	return nil
}
