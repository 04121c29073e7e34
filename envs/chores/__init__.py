"""Household tasks in AI2-THOR as SPOC and FLaRe define them: what is asked, of which house, and when it is done."""
