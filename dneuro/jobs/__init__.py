"""The life of a job: checked and planned in full, run, resumed, reported.

`study` finds out what a job means, `planning` what it will cost, `driver` runs it, `lease` keeps two runs apart,
`growth` makes and grows the store, `analyses` runs its steps, `members` does all that for several networks.
"""
