"""`edgegw ledger verify`: whether journals, checkpoints, rows and sums say the same, and where they do not.

    findings.py   what was found, bounded, for people and programs
    rules.py      what must hold among the rows, as questions whose every answer is a finding
    kept.py       what is on disk of a life, damage told and not read past in silence
    lives.py      journals against checkpoints and rows
    rows.py       rows against each other and against their sums, an hour at a time
    verify.py     all of it, within one view of the books

Reads only, and works while the gateway writes.
"""
