"""The life of a job: checked and planned in full, submitted, run, resumed, reported.

What a job computes: `study` finds out what it means, `planning` what it will cost, `driver` runs it, `growth` makes and
grows the store, `pools` says on which workers, `members` does all that for several networks. Its steps ask `questions`,
whose `plans` and `answers` are two files.

What becomes of it: `folder` is its folder, `submitting` starts a driver, `drive` is that driver, `attempt` keeps its
log and its state, made by `progress`, `written` knows a damaged one, `lease` keeps two of them apart, `asking` asks
whoever started it, `watching` says what is true, `ending` ends it, and `handle` is all that for Python.
"""
