package main

// How the peers that are not Go programs are configured: nginx, puma and
// gunicorn, without access logs and with as many workers as the others have.

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
)

const nginxConf = `daemon off;
worker_processes %[1]d;
worker_rlimit_nofile 16384;
pid %[2]s/nginx.pid;
error_log stderr crit;
events { worker_connections 8192; }
http {
	access_log off;
	default_type text/plain;
	keepalive_requests 1000000000;
	client_body_temp_path %[2]s/body;
	proxy_temp_path %[2]s/proxy;
	fastcgi_temp_path %[2]s/fastcgi;
	uwsgi_temp_path %[2]s/uwsgi;
	scgi_temp_path %[2]s/scgi;
	server {
		listen %[3]s%[4]s reuseport backlog=4096;
		%[5]s
		location = / { return 200 "` + helloText + `"; }
		location = /pid { return 200 "$pid"; }
		location = /json { default_type application/json; return 200 '%[6]s'; }
	}
}
`

func nginxCommand(ctx context.Context, s setup) (*exec.Cmd, error) {
	var ssl, keys string
	if s.cert != "" {
		ssl = " ssl"
		keys = fmt.Sprintf("ssl_certificate %s; ssl_certificate_key %s; ssl_protocols TLSv1.2 TLSv1.3; ssl_session_tickets on;", s.cert, s.key)
	}
	body, err := json.Marshal(newArticle())
	if err != nil {
		return nil, err
	}
	path, err := writeFile(s.dir, "nginx.conf", fmt.Sprintf(nginxConf, s.workers, s.dir, s.addr, ssl, keys, body))
	if err != nil {
		return nil, err
	}
	return exec.CommandContext(ctx, "nginx", "-p", s.dir, "-c", path), nil
}

// The Ruby and the Python application: hello, the pid, and a slow answer.
const (
	rackApp = `run lambda { |env|
  body = case env['PATH_INFO']
         when '/pid' then Process.pid.to_s
         when '/slow' then (sleep 0.3; '` + helloText + `')
         else '` + helloText + `'
         end
  [200, { 'Content-Type' => 'text/plain', 'Content-Length' => body.bytesize.to_s }, [body]]
}
`
	wsgiApp = `import os, time

def app(environ, start_response):
    path = environ['PATH_INFO']
    if path == '/slow':
        time.sleep(0.3)
    body = str(os.getpid()).encode() if path == '/pid' else b'` + helloText + `'
    start_response('200 OK', [('Content-Type', 'text/plain'), ('Content-Length', str(len(body)))])
    return [body]
`
	threads = 16 // of each worker
)

func pumaCommand(ctx context.Context, s setup) (*exec.Cmd, error) {
	if _, err := writeFile(s.dir, "config.ru", rackApp); err != nil {
		return nil, err
	}
	// Without preloading: with it there is no phased restart, which is its reload.
	conf := fmt.Sprintf("preload_app! false\nworkers %d\nthreads %d, %d\nbind 'tcp://%s'\nenvironment 'production'\nlog_requests false\n",
		s.workers, threads, threads, s.addr)
	path, err := writeFile(s.dir, "puma.rb", conf)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, "puma", "-C", path, "config.ru")
	cmd.Dir = s.dir
	return cmd, nil
}

func gunicornCommand(ctx context.Context, s setup) (*exec.Cmd, error) {
	if _, err := writeFile(s.dir, "app.py", wsgiApp); err != nil {
		return nil, err
	}
	args := []string{
		"--workers", strconv.Itoa(s.workers), "--worker-class", "gthread", "--threads", strconv.Itoa(threads),
		"--keep-alive", "75", "--backlog", "4096", "--log-level", "critical", "--bind", s.addr,
	}
	if info, err := os.Stat("/dev/shm"); err == nil && info.IsDir() {
		args = append(args, "--worker-tmp-dir", "/dev/shm") // as its documentation recommends
	}
	cmd := exec.CommandContext(ctx, "gunicorn", append(args, "app:app")...)
	cmd.Dir = s.dir
	cmd.Env = append(os.Environ(), "PYTHONDONTWRITEBYTECODE=1")
	return cmd, nil
}

// missing names what is not installed, for the report.
func missing(peers []*peer) string {
	var names []string
	for _, p := range peers {
		names = append(names, p.name)
	}
	return strings.Join(names, ", ")
}
