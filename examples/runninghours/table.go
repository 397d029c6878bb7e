package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	_ "modernc.org/sqlite" // the driver "sqlite"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
)

const running = instancedv1.InstanceStateName_INSTANCE_STATE_NAME_RUNNING

// The times are nanoseconds since 1970, the durations nanoseconds. running_since is null
// for an instance that does not run. The one row of position is where the watch goes on,
// and when counting began.
const schema = `
CREATE TABLE IF NOT EXISTS instances (
	id            TEXT PRIMARY KEY,
	state         TEXT NOT NULL,
	running_since INTEGER,
	running_for   INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS position (
	only   INTEGER PRIMARY KEY CHECK (only = 1),
	cursor TEXT NOT NULL,
	since  INTEGER NOT NULL
);`

// table is what is derived from the changes. It is used by one goroutine.
type table struct {
	db *sql.DB
	// snapshot is the transaction of a snapshot that is not complete.
	snapshot *sql.Tx
}

// row is one instance of the table.
type row struct {
	id, state string
	since     *int64
	before    time.Duration
}

// running is for how long it has been running.
func (r row) running(now time.Time) time.Duration {
	if r.since == nil {
		return r.before
	}
	return r.before + now.Sub(time.Unix(0, *r.since))
}

func openTable(ctx context.Context, path string) (*table, error) {
	// WAL lets others read while a transaction is open.
	const settings = "?_pragma=busy_timeout(10000)&_pragma=journal_mode(WAL)&_txlock=immediate"
	db, err := sql.Open("sqlite", "file:"+(&url.URL{Path: path}).EscapedPath()+settings)
	if err != nil {
		return nil, err
	}
	if _, err := db.ExecContext(ctx, schema); err != nil {
		return nil, errors.Join(fmt.Errorf("open %s: %w", path, err), db.Close())
	}
	return &table{db: db}, nil
}

func (t *table) close() error {
	t.rollback()
	return t.db.Close()
}

// cursor returns where to go on; empty where nothing is known yet.
func (t *table) cursor(ctx context.Context) (cursor string, err error) {
	err = t.db.QueryRowContext(ctx, "SELECT cursor FROM position").Scan(&cursor)
	if errors.Is(err, sql.ErrNoRows) {
		return "", nil
	}
	return cursor, err
}

// take derives what a message says. All that leads to one cursor is one transaction: a
// snapshot, of however many messages, or the changes of one message.
func (t *table) take(ctx context.Context, msg *instancedv1.WatchInstancesResponse) error {
	if part := msg.GetSnapshot(); part != nil {
		return t.takeSnapshot(ctx, part, msg.GetCursor())
	}
	if msg.GetCursor() == "" {
		return nil
	}
	// What comes is after the last cursor: a snapshot that was not complete is no more.
	t.rollback()
	tx, err := t.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }()
	for _, e := range msg.GetEvents().GetEvents() {
		if err := change(ctx, tx, e); err != nil {
			return err
		}
	}
	if _, err := tx.ExecContext(ctx, "UPDATE position SET cursor = ?", msg.GetCursor()); err != nil {
		return err
	}
	return tx.Commit()
}

// takeSnapshot replaces the table. Whoever reads it meanwhile sees the old one until all of
// the new one is there. An instance that runs already counts from its launch time: when
// the start was asked for, which is a little before it was running.
func (t *table) takeSnapshot(ctx context.Context, part *instancedv1.Snapshot, cursor string) error {
	if part.GetFirst() {
		t.rollback()
		tx, err := t.db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		t.snapshot = tx
		if _, err := tx.ExecContext(ctx, "DELETE FROM instances"); err != nil {
			return err
		}
	}
	for _, i := range part.GetInstances() {
		since := sql.NullInt64{
			Int64: i.GetLaunchTime().AsTime().UnixNano(),
			Valid: i.GetState().GetName() == running && i.GetLaunchTime() != nil,
		}
		_, err := t.snapshot.ExecContext(ctx, "INSERT INTO instances (id, state, running_since, running_for) VALUES (?, ?, ?, 0)",
			i.GetInstanceId(), stateName(i), since)
		if err != nil {
			return err
		}
	}
	if !part.GetLast() {
		return nil
	}
	_, err := t.snapshot.ExecContext(ctx, "INSERT OR REPLACE INTO position (only, cursor, since) VALUES (1, ?, ?)", cursor, time.Now().UnixNano())
	if err != nil {
		return err
	}
	err = t.snapshot.Commit()
	t.snapshot = nil
	return err
}

func (t *table) rollback() {
	if t.snapshot != nil {
		_ = t.snapshot.Rollback()
		t.snapshot = nil
	}
}

// change counts one change.
func change(ctx context.Context, tx *sql.Tx, e *instancedv1.Event) error {
	i, at := e.GetInstance(), e.GetOccurredAt().AsTime().UnixNano()
	if e.GetType() == instancedv1.EventType_EVENT_TYPE_REMOVED {
		_, err := tx.ExecContext(ctx, "DELETE FROM instances WHERE id = ?", i.GetInstanceId())
		return err
	}
	// What ran until now has run for so much longer; what runs from now on is noted.
	var begins sql.NullInt64
	if i.GetState().GetName() == running {
		begins = sql.NullInt64{Int64: at, Valid: true}
	}
	_, err := tx.ExecContext(ctx, `
		INSERT INTO instances (id, state, running_since, running_for) VALUES (?1, ?2, ?3, 0)
		ON CONFLICT (id) DO UPDATE SET
			state = ?2,
			running_for = running_for + CASE WHEN ?3 IS NULL AND running_since IS NOT NULL THEN max(?4 - running_since, 0) ELSE 0 END,
			running_since = CASE WHEN ?3 IS NULL THEN NULL ELSE coalesce(running_since, ?3) END`,
		i.GetInstanceId(), stateName(i), begins, at)
	return err
}

// rows returns the table, and when counting began.
func (t *table) rows(ctx context.Context) (rows []row, since time.Time, err error) {
	// One transaction, so that both are of the same moment.
	tx, err := t.db.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return nil, time.Time{}, err
	}
	defer func() { _ = tx.Rollback() }()
	var began int64
	if err := tx.QueryRowContext(ctx, "SELECT since FROM position").Scan(&began); err != nil {
		return nil, time.Time{}, fmt.Errorf("nothing was counted yet: %w", err)
	}
	found, err := tx.QueryContext(ctx, "SELECT id, state, running_since, running_for FROM instances ORDER BY id")
	if err != nil {
		return nil, time.Time{}, err
	}
	defer func() { _ = found.Close() }()
	for found.Next() {
		var r row
		if err := found.Scan(&r.id, &r.state, &r.since, &r.before); err != nil {
			return nil, time.Time{}, err
		}
		rows = append(rows, r)
	}
	return rows, time.Unix(0, began), found.Err()
}

// stateName returns EC2's name of the state of an instance.
func stateName(i *instancedv1.Instance) string {
	name := strings.TrimPrefix(i.GetState().GetName().String(), "INSTANCE_STATE_NAME_")
	return strings.ReplaceAll(strings.ToLower(name), "_", "-")
}
