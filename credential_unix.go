//go:build unix

package prefork

// Whose rights the children have: ListenConfig.ChildCredential.

import (
	"fmt"
	"os"
	"os/user"
	"strconv"
	"syscall"
)

// credential is what a child gets.
type credential syscall.Credential

// lookUp finds a user and a group. Without either it returns nil, which means
// the rights of this process.
func lookUp(c Credential) (*credential, error) {
	if c == (Credential{}) {
		return nil, nil //nolint:nilnil // no credential is neither one nor a failure
	}
	uid, gid := uint32(os.Geteuid()), uint32(os.Getegid())
	if c.User != "" {
		u, err := user.Lookup(c.User)
		if err != nil {
			u, err = user.LookupId(c.User)
		}
		switch {
		case err == nil:
			if uid, err = number(u.Uid); err != nil {
				return nil, invalid("ChildCredential.User", quoted(c.User), err.Error())
			}
			if gid, err = number(u.Gid); err != nil {
				return nil, invalid("ChildCredential.User", quoted(c.User), err.Error())
			}
		case c.Group == "":
			return nil, invalid("ChildCredential.User", quoted(c.User), "there is no such user; a number that no user has needs a Group")
		default: // a number will do, as it does in containers
			if uid, err = number(c.User); err != nil {
				return nil, invalid("ChildCredential.User", quoted(c.User), "there is no such user")
			}
		}
	}
	if c.Group != "" {
		g, err := user.LookupGroup(c.Group)
		if err != nil {
			g, err = user.LookupGroupId(c.Group)
		}
		id := c.Group
		if err == nil {
			id = g.Gid
		}
		if gid, err = number(id); err != nil {
			return nil, invalid("ChildCredential.Group", quoted(c.Group), "there is no such group")
		}
	}
	if os.Geteuid() != 0 {
		if int(uid) == os.Geteuid() && int(gid) == os.Getegid() {
			return nil, nil //nolint:nilnil // as above
		}
		return nil, invalid("ChildCredential", fmt.Sprintf("%+v", c), fmt.Sprintf("only root can change the user; this is user %d", os.Geteuid()))
	}
	return &credential{Uid: uid, Gid: gid}, nil
}

func quoted(s string) string { return fmt.Sprintf("%q", s) }

// number is a user's or a group's. The last one means "none" to the system.
func number(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err == nil && n == 1<<32-1 {
		err = strconv.ErrRange
	}
	return uint32(n), err
}
