package soak_test

import (
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
)

// etcdAway takes the external etcd away from a process: for a moment, and for longer than
// its ownership lasts without it; by connections that break, by a network that says
// nothing, and by a kill of etcd.
func etcdAway(r round) {
	e := newEtcd(r)
	network := newProxy(r.T, e.address)
	p := newProcess(r.T, append(r.flags(), "--etcd-endpoints", "http://"+network.Listen)...)
	p.start()
	p.ready()
	s := r.begin(p.address)
	s.served(20)

	ways := []struct {
		name       string
		away, back func()
	}{
		{"connections to etcd that were cut", network.cut, network.connect},
		{"kills of etcd", func() { e.kill() }, e.start},
		{"networks to etcd that fell silent", network.silence, network.restore},
	}
	for n := range r.times(2, 6) {
		way := ways[n%len(ways)]
		// A short one: whether anybody is refused is a matter of chance.
		way.away()
		time.Sleep(time.Duration(r.random.Int64N(int64(2 * time.Second))))
		way.back()
		began := time.Now()
		s.served(5)
		r.summary.count(way.name, 1)
		r.summary.took("from a short outage of etcd to callers being served", time.Since(began))
	}
	for n := range r.times(1, 3) {
		way := ways[(n+1)%len(ways)]
		way.away()
		began := time.Now()
		s.refuses(0, codes.Unavailable, "JOURNAL_UNAVAILABLE", "NOT_OWNER")
		r.summary.took("from an outage of etcd to commands being refused", time.Since(began))
		s.health(grpc_health_v1.HealthCheckResponse_NOT_SERVING)
		r.summary.took("from an outage of etcd to bad health", time.Since(began))
		s.told("JOURNAL_UNAVAILABLE")
		s.refuses(time.Second, codes.Unavailable, "NOT_OWNER", "JOURNAL_UNAVAILABLE")
		way.back()
		began = time.Now()
		s.served(5)
		r.summary.count(way.name, 1)
		r.summary.took("from a long outage of etcd to callers being served", time.Since(began))
		s.health(grpc_health_v1.HealthCheckResponse_SERVING)
		s.told("")
	}
	s.finish()
	s.uninterrupted()
}
