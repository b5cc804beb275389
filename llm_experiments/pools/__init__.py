"""Pools of adapters: a table of what there is, a few selected by a rule, merged or fitted like any library.

    sources --members--> one row each, from headers, settings and model cards; no numbers are read
            --index----> rows kept in a file, so that what has not changed is not looked at again
            --table----> bases with their aliases, what can be merged with what, and why not
            --selectors> scores by chance, on examples, or by likeness to an adapter of the target
            --controls-> what a selection has to beat: random adapters, shuffled examples, ..

The selected ones are opened (`adapters.reader.opened`) and go layer by layer through `merges`.
"""
