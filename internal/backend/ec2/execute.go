package ec2

import (
	"context"
	"slices"
	"time"

	"github.com/instanced/instanced/internal/backend/ec2/dispatch"
	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/tracing"
)

// Execute carries a command out, in one call to EC2 with others like it where callers cannot
// tell the difference; the contract is documented at the consumer. When ctx ends, what was sent
// is still carried out, and what was not sent never is.
func (b *Backend) Execute(ctx context.Context, cmd instance.Command) (instance.Result, error) {
	if err := ctx.Err(); err != nil {
		return instance.Result{}, err
	}
	if len(cmd.IDs) == 0 || !b.dispatcher.Supports(cmd.Verb) {
		return instance.Result{}, &instance.Error{
			Kind: instance.KindInvalid, Code: "InvalidParameterCombination", Message: "No instances specified",
		}
	}
	if openErr := b.client.breaker.allow(); openErr != nil {
		return instance.Result{}, openErr
	}
	unmanaged, err := b.unmanaged(ctx, cmd.IDs)
	if err != nil {
		return instance.Result{}, err
	}
	if len(unmanaged) == 0 {
		return b.execute(ctx, cmd)
	}
	if !cmd.PerInstance || cmd.DryRun {
		return instance.Result{}, instance.NotFound(unmanaged...)
	}
	var result instance.Result
	order := make(map[instance.ID]int, len(cmd.IDs))
	for i, id := range cmd.IDs {
		order[id] = i
	}
	isUnmanaged := setOf(unmanaged)
	cmd.IDs = slices.DeleteFunc(slices.Clone(cmd.IDs), func(id instance.ID) bool { return isUnmanaged[id] })
	if len(cmd.IDs) > 0 {
		if result, err = b.execute(ctx, cmd); err != nil && ctx.Err() == nil {
			return result, err
		}
	}
	for _, id := range unmanaged {
		result.Failures = append(result.Failures, instance.Failure{ID: id, Err: instance.NotFound(id)})
	}
	slices.SortFunc(result.Failures, func(x, y instance.Failure) int { return order[x.ID] - order[y.ID] })
	return result, err
}

// execute queues a command and waits for its outcome.
func (b *Backend) execute(ctx context.Context, cmd instance.Command) (instance.Result, error) {
	deadline, _ := ctx.Deadline()
	r := dispatch.NewRequest(cmd, deadline)
	if span := tracing.Recorded(ctx); span != nil {
		r.Tag = &enqueued{span, time.Now()}
	}
	if err := b.dispatcher.Enqueue(r); err != nil {
		return instance.Result{}, err
	}
	termEnded := ended(cmd.Term)
	select {
	case <-r.Done():
		return resultOf(r)
	case <-termEnded:
	case <-ctx.Done():
	}
	// The end of the term may have ended ctx too.
	if err := instance.CheckTerm(cmd.Term); err != nil {
		b.dispatcher.Withdraw(r, err)
	}
	select {
	case <-r.Done():
		return resultOf(r)
	case <-ctx.Done():
	}
	result, left := b.dispatcher.Leave(r)
	if !left {
		return resultOf(r)
	}
	return result, ctx.Err()
}

// resultOf returns the outcome of a request. If all instances failed for reasons that concern the
// service, not an instance, the request fails as a whole.
func resultOf(r *dispatch.Request) (instance.Result, error) {
	result, err := r.Result()
	if err != nil {
		return result, err
	}
	if len(result.Changes) > 0 || len(result.Failures) == 0 {
		return result, nil
	}
	for _, failure := range result.Failures {
		if !isServiceWide(failure.Err) {
			return result, nil
		}
	}
	return instance.Result{}, result.Failures[0].Err
}
