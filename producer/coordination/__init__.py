"""Owns who runs what: nobody else (`none`), one of several that stand by (`redis`), or a part each (`kafka`)."""
