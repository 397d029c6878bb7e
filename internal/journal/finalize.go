package journal

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"
)

// Finalize raises a journal to the newest format that this version of the program writes,
// and returns the one that it had. From then on only versions that know the new one can
// read it, and there is no way back. No process may use the data directory, or own the log
// in an external etcd, meanwhile. Errors are sentences for the operator.
func Finalize(ctx context.Context, config Config) (was, is int, err error) {
	config.mustExist = true
	if len(config.Endpoints) == 0 {
		if _, err := os.Stat(filepath.Join(config.DataDir, "format")); errors.Is(err, fs.ErrNotExist) {
			return 0, 0, fmt.Errorf("there is no journal in %s", config.DataDir)
		}
		// A quota that is used up already would cost history.
		if info, err := os.Stat(filepath.Join(config.DataDir, "etcd", "member", "snap", "db")); err == nil {
			config.MaxBytes = max(config.withDefaults().MaxBytes, info.Size())
		}
	}
	j, err := Open(ctx, config)
	if err != nil {
		return 0, 0, err
	}
	was, err = j.finalize(ctx)
	return was, formatVersion, errors.Join(err, j.Close(ctx))
}

func (j *Journal) finalize(ctx context.Context) (was int, err error) {
	c, err := j.store.control(ctx, 0)
	if err != nil {
		return 0, err
	}
	was = int(c.meta.GetFormatVersion())
	if was == formatVersion {
		return was, nil
	}
	if c.owner != nil && !j.store.embedded {
		return was, fmt.Errorf("the journal is in use by the process at %s: stop all processes that use it, and try again", or(c.owner.GetAddress(), "an unknown address"))
	}
	if j.dir != nil { // an older version is to find it there already
		if err := j.dir.raise(formatVersion); err != nil {
			return was, err
		}
	}
	meta := proto.CloneOf(c.meta)
	meta.FormatVersion, meta.ProgramVersion, meta.ChecksumsFromRevision = formatVersion, j.config.Version, c.revision+1
	j.store.meta.Store(meta)
	k := &j.store.keys
	unchanged := []clientv3.Cmp{clientv3.Compare(clientv3.CreateRevision(k.owner), "=", c.ownerRevision)}
	for _, key := range []string{k.meta, k.epochs, k.head, k.checkpoint} { // each owner writes one of them at least
		unchanged = append(unchanged, clientv3.Compare(clientv3.ModRevision(key), "<", c.revision+1))
	}
	resp, err := j.store.client.Txn(ctx).If(unchanged...).Then(j.store.put(k.meta, meta)).Commit()
	switch {
	case err != nil:
		return was, fmt.Errorf("etcd does not take the new format: %w", err)
	case !resp.Succeeded:
		return was, errors.New("another process has begun to use the journal: stop all processes that use it, and try again")
	}
	return was, nil
}
