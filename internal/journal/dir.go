package journal

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// The version of the data directory and of all keys grows when an older binary must not
// touch what a newer one wrote:
//
//	1  a change has the instance before and after it in full
//	2  a step: of the instance before the change, only what is not as after it
//	3  the changes of a batch may be packed
//	4  every value is sealed
const (
	// formatVersion is the newest that is known, and that of a new journal.
	formatVersion = 4
	// minWrittenFormat is the oldest that is written. A journal that is older is raised to it
	// at the first start; one that is not stays what it is until [Finalize] raises it, so
	// that the version before this one can go on with it.
	minWrittenFormat = 3
	// minSealedFormat is the oldest whose values are sealed.
	minSealedFormat = 4
)

// dataDir is a data directory that is locked by this process:
//
//	lock     held for as long as the process runs; has its process id
//	format   the version of what follows
//	started  exists once etcd has begun its log
//	etcd/    etcd's own
type dataDir struct {
	path string
	lock *os.File
	// format is that of the directory, which what is in etcd may not have yet.
	format int
	// version is that of this program.
	version string
}

// openDir creates the directory where there is none, and takes its lock before
// anything in it is touched. Errors say in a sentence what is wrong.
func openDir(path, version string) (*dataDir, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("the data directory %s cannot be created: %w", path, reason(err))
	}
	if err := refuseForeign(path); err != nil {
		return nil, err
	}
	d := &dataDir{path: path, version: version}
	if err := d.takeLock(); err != nil {
		return nil, err
	}
	if err := d.check(); err != nil {
		_ = d.close()
		return nil, err
	}
	return d, nil
}

// refuseForeign returns an error for a directory that somebody uses for something
// else: it has files, none of which is the format. Nothing of it is touched.
func refuseForeign(path string) error {
	entries, err := os.ReadDir(path)
	if err != nil {
		return fmt.Errorf("the data directory %s cannot be read: %w", path, reason(err))
	}
	for _, e := range entries {
		switch name := e.Name(); {
		case name == "lock", name == "format", name == "format.new", name == "started", name == "etcd", strings.HasPrefix(name, probePrefix):
		case name == "lost+found": // of the file system
		default:
			// Looked for last: another process may be creating it all.
			if _, err := os.Lstat(filepath.Join(path, "format")); err == nil {
				return nil
			}
			return fmt.Errorf("the data directory %s is not one of this program, and not empty: it has %q; use a new or an empty directory",
				path, name)
		}
	}
	return nil
}

const probePrefix = ".probe-"

func (d *dataDir) etcd() string { return filepath.Join(d.path, "etcd") }

func (d *dataDir) takeLock() error {
	name := filepath.Join(d.path, "lock")
	lock, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return d.errUnwritable(err)
	}
	err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	switch {
	case errors.Is(err, unix.EWOULDBLOCK):
		pid, _ := os.ReadFile(name)
		_ = lock.Close()
		return fmt.Errorf("the data directory %s is in use by process %s: stop that process, or use another directory",
			d.path, strings.TrimSpace(string(pid)))
	case err != nil:
		_ = lock.Close()
		return fmt.Errorf("the data directory %s cannot be locked: %w", d.path, err)
	}
	d.lock = lock
	if err := lock.Truncate(0); err != nil {
		return d.errUnwritable(errors.Join(err, d.close()))
	}
	if _, err := fmt.Fprintln(lock, os.Getpid()); err != nil {
		return d.errUnwritable(errors.Join(err, d.close()))
	}
	return nil
}

// close releases the lock. The file stays: a lock on a file that was removed would not exclude
// other processes.
func (d *dataDir) close() error { return d.lock.Close() }

// check reads the format, writes it into a new directory, and makes sure that
// etcd will be able to write.
func (d *dataDir) check() error {
	probe, err := os.CreateTemp(d.path, probePrefix+"*")
	if err != nil {
		return d.errUnwritable(err)
	}
	if err := errors.Join(probe.Close(), os.Remove(probe.Name())); err != nil {
		return d.errUnwritable(err)
	}
	name := filepath.Join(d.path, "format")
	text, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return d.create()
	}
	if err != nil {
		return fmt.Errorf("the format of the data directory %s cannot be read: %w", d.path, reason(err))
	}
	var version int
	if _, err := fmt.Sscanf(string(text), formatLine, &version); err != nil || version < 1 {
		return fmt.Errorf("the data directory %s is not one of this program: its file \"format\" says %.40q", d.path, text)
	}
	if version > formatVersion {
		_, program, _ := strings.Cut(string(text), versionLine)
		return errNewer("the data directory "+d.path, version, strings.TrimSpace(program))
	}
	d.format = version
	return d.raise(minWrittenFormat)
}

// started reports whether etcd has begun its log.
func (d *dataDir) started() bool {
	_, err := os.Stat(filepath.Join(d.path, "started"))
	return err == nil
}

// hasStarted notes that etcd is complete, which it is not when its first start was
// cut short.
func (d *dataDir) hasStarted() error {
	if d.started() {
		return nil
	}
	if err := writeSynced(filepath.Join(d.path, "started"), ""); err != nil {
		return d.errUnwritable(err)
	}
	return nil
}

// verifyEtcd finds what etcd does not: where its files are missing it begins anew or waits
// for ever, and what is damaged it serves, or ends the process.
func (d *dataDir) verifyEtcd(k *keys) error {
	if !d.started() {
		return nil // it may have been cut short while it made them
	}
	member := filepath.Join(d.etcd(), "member")
	db, wal := filepath.Join(member, "snap", "db"), filepath.Join(member, "wal")
	if _, err := os.Stat(db); errors.Is(err, fs.ErrNotExist) {
		return errDamaged(d.path, fmt.Errorf("%s is missing", db))
	}
	if logs, _ := filepath.Glob(filepath.Join(wal, "*.wal")); len(logs) == 0 {
		return errDamaged(d.path, fmt.Errorf("%s has no files of etcd's log", wal))
	}
	applied, err := verifyDatabase(db, k)
	if err != nil {
		return explainEtcd(d.path, err)
	}
	last, err := verifyWAL(wal)
	if err != nil {
		return explainEtcd(d.path, err)
	}
	if last < applied {
		return errDamaged(d.path, fmt.Errorf("etcd's log ends with entry %d, and its database has entry %d: the end of the log is missing", last, applied))
	}
	return nil
}

// errMmapTooLarge is what bbolt says of a database that no address space has room for.
var errMmapTooLarge = errors.New("mmap too large")

// explainEtcd says why etcd's files cannot be used: they are damaged, unless the operating
// system is why, for want of memory or of files, or because the disk cannot be read.
func explainEtcd(path string, err error) error {
	_, system := errors.AsType[syscall.Errno](err)
	for _, reason := range []error{unix.ENOMEM, unix.EMFILE, unix.ENFILE, unix.EIO, unix.ENOSPC, errMmapTooLarge} {
		system = system || strings.Contains(err.Error(), reason.Error()) // etcd does not always wrap what it reports
	}
	if system {
		return fmt.Errorf("etcd does not start in %s: %w", filepath.Join(path, "etcd"), err)
	}
	return errDamaged(path, err)
}

// errDamaged says what is damaged in a data directory, and what to do.
func errDamaged(path string, cause error) error {
	return fmt.Errorf("%w; restore a copy of it, or move it away to begin with an empty journal", &damage{what: "the journal in " + path, cause: cause})
}

// errNewer is why something of a newer format is left alone.
func errNewer(what string, format int, program string) error {
	return fmt.Errorf("%s has format %d, of a newer version of this program (%s); this version knows formats up to %d",
		what, format, or(program, "it does not say which"), formatVersion)
}

// The file "format" has the first of these lines and, if the version of the program that
// wrote it is known, the second.
const (
	formatLine  = "instanced journal %d\n"
	versionLine = "written by instanced "
)

func (d *dataDir) create() error {
	if _, err := os.Stat(d.etcd()); err == nil {
		return fmt.Errorf("the data directory %s is damaged: it has data, but its file \"format\" is missing", d.path)
	}
	return d.raise(formatVersion)
}

// raise makes the directory one of a format, unless it is of that or a newer one.
func (d *dataDir) raise(format int) error {
	if d.format >= format {
		return nil
	}
	name := filepath.Join(d.path, "format")
	next := name + ".new"
	text := fmt.Sprintf(formatLine, format)
	if d.version != "" {
		text += versionLine + d.version + "\n"
	}
	if err := writeSynced(next, text); err != nil {
		return d.errUnwritable(err)
	}
	if err := os.Rename(next, name); err != nil {
		return d.errUnwritable(err)
	}
	if err := syncDir(d.path); err != nil {
		return d.errUnwritable(err)
	}
	d.format = format
	return nil
}

func (d *dataDir) errUnwritable(err error) error {
	return fmt.Errorf("the data directory %s cannot be written to: %w", d.path, reason(err))
}

func writeSynced(name, text string) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Sync(), f.Close())
}

func syncDir(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// reason is the cause of an error of a file without its path, which the sentence
// around it has already.
func reason(err error) error {
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return errno
	}
	return err
}
