package instance_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/instanced/instanced/internal/instance"
)

func TestAHeartIsSilentOnlyBetweenBeatsAndNotAtRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var heart instance.Heartbeat
		time.Sleep(time.Hour)
		if silence := heart.Silence(); silence != 0 {
			t.Errorf("before the first beat: %v", silence)
		}
		heart.Beat()
		time.Sleep(31 * time.Second)
		if silence := heart.Silence(); silence != 31*time.Second {
			t.Errorf("31 s after a beat: %v", silence)
		}
		heart.Rest()
		if silence := heart.Silence(); silence != 0 {
			t.Errorf("at rest: %v", silence)
		}
	})
}
