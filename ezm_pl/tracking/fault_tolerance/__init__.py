"""What exists only so that a tracked run survives: `sender` keeps metrics while MLflow does not answer,
`output` goes on where a terminal or a pipe is gone, and `signals` lets `kill`, a scheduler and a closed
terminal end a run as Ctrl-C does."""
