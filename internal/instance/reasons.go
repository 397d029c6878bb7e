package instance

// Reasons are this service's own, as [Error.Reason] and the error details of every response
// carry them. docs/errors.md says what a caller can do about each. They are part of the
// contract: a reason may be added, none is renamed.
const (
	// ReasonInvalidRequest: fields of the request are wrong, see [Error.Violations].
	ReasonInvalidRequest = "INVALID_REQUEST"
	// ReasonUnknownField: a command has fields that this version does not know.
	ReasonUnknownField = "UNKNOWN_FIELD"
	// ReasonInvalidMetadata: the metadata of the call is malformed.
	ReasonInvalidMetadata = "INVALID_METADATA"

	// ReasonCursorUnreadable: not a cursor, or not a whole one. [KindInvalid].
	ReasonCursorUnreadable = "CURSOR_UNREADABLE"
	// ReasonCursorOfOtherLog: a cursor of another log. [KindOutOfRange], as the next three.
	ReasonCursorOfOtherLog = "CURSOR_OF_OTHER_LOG"
	// ReasonCursorRolledBack: the log was restored from an older copy, which lacks what the
	// cursor points to.
	ReasonCursorRolledBack = "CURSOR_ROLLED_BACK"
	// ReasonCursorAhead: the log does not reach as far as the cursor.
	ReasonCursorAhead = "CURSOR_AHEAD"
	// ReasonCursorExpired: what follows the cursor is no longer kept, or is damaged.
	ReasonCursorExpired = "CURSOR_EXPIRED"

	// ReasonClientTokenReused: the client token belongs to another request. [KindConflict].
	ReasonClientTokenReused = "CLIENT_TOKEN_REUSED" //nolint:gosec // the name of an error, not a secret
	// ReasonTooManyClientTokens: the client tokens of a principal take up its share.
	// [KindExhausted], as all reasons that begin so.
	ReasonTooManyClientTokens = "TOO_MANY_CLIENT_TOKENS"
	// ReasonTooManyLookUps: a principal waits for too many look-ups of unknown ids.
	ReasonTooManyLookUps = "TOO_MANY_LOOK_UPS"
	// ReasonTooManyRequests: a caller has too many requests in flight.
	ReasonTooManyRequests = "TOO_MANY_REQUESTS"
	// ReasonTooManyStreams: a caller has too many streams and waits open.
	ReasonTooManyStreams = "TOO_MANY_STREAMS"
	// ReasonTooManyConnections: a principal has calls in flight on too many connections.
	ReasonTooManyConnections = "TOO_MANY_CONNECTIONS"

	// ReasonJournalFull: there is no room to record anything. [KindExhausted].
	ReasonJournalFull = "JOURNAL_FULL"
	// ReasonJournalUnavailable: the journal is closed, or etcd does not respond.
	// [KindUnavailable], as the rest unless it says otherwise.
	ReasonJournalUnavailable = "JOURNAL_UNAVAILABLE"
	// ReasonNotOwner: this process may not command the backend or write to the journal,
	// since another process may.
	ReasonNotOwner = "NOT_OWNER"
	// ReasonNotRecorded: the command was carried out, but is not recorded yet.
	ReasonNotRecorded = "NOT_RECORDED"
	// ReasonCommandOutcomeUnknown: whether a command with this client token was carried out
	// can no longer be told, and it is not repeated. [KindPrecondition].
	ReasonCommandOutcomeUnknown = "COMMAND_OUTCOME_UNKNOWN"
	// ReasonRebootOutcomeUnknown: whether a reboot with this client token took place is not
	// known, and it is not repeated. [KindPrecondition].
	ReasonRebootOutcomeUnknown = "REBOOT_OUTCOME_UNKNOWN"

	// ReasonRequestLimitExceeded: by this service's copy of EC2's token buckets, EC2 would not
	// accept the request in time. [KindExhausted].
	ReasonRequestLimitExceeded = "REQUEST_LIMIT_EXCEEDED"
	// ReasonNotSentInTime: the command waited for its turn until its deadline. [KindExhausted].
	ReasonNotSentInTime = "NOT_SENT_IN_TIME"
	// ReasonBackendUnavailable: the backend did not get the request.
	ReasonBackendUnavailable = "BACKEND_UNAVAILABLE"
	// ReasonAnswerLost: the backend did not respond, or its response cannot be read; the
	// outcome of the command is unknown.
	ReasonAnswerLost = "ANSWER_LOST"
	// ReasonInstanceUnreadable: the backend describes the instance in a way that this version
	// does not understand.
	ReasonInstanceUnreadable = "INSTANCE_UNREADABLE"
	// ReasonEndlessPages: the backend repeats a page, or never returns the last one.
	ReasonEndlessPages = "ENDLESS_PAGES"
	// ReasonCredentialsRefused: this service has no credentials, or the backend refuses them.
	// [KindInternal]: callers are not told.
	ReasonCredentialsRefused = "CREDENTIALS_REFUSED"
	// ReasonBackendClosing: this process is shutting down.
	ReasonBackendClosing = "BACKEND_CLOSING"

	// ReasonCertificateUnusable: the client certificate is valid, but does not name one
	// principal. [KindUnauthenticated].
	ReasonCertificateUnusable = "CERTIFICATE_UNUSABLE"
	// ReasonReauthenticate: the client certificate has expired, or its authority was withdrawn,
	// and the connection is about to be closed.
	ReasonReauthenticate = "REAUTHENTICATE"

	// ReasonRequestLate: the request did not arrive in time after the start of its call.
	ReasonRequestLate = "REQUEST_LATE"
	// ReasonDraining: the server is shutting down and ends streams and waits.
	ReasonDraining = "DRAINING"
	// ReasonCanceled: the caller canceled the call.
	ReasonCanceled = "CANCELED"
	// ReasonDeadlineExceeded: the deadline of the call has passed.
	ReasonDeadlineExceeded = "DEADLINE_EXCEEDED"
	// ReasonInternal: a bug, or a fault that is not the caller's business; the log has the cause.
	ReasonInternal = "INTERNAL"
)
