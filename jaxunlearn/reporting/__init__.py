"""Records to pages, pictures and tables: what a comparison and an audit found, for people.

    report     the page of a comparison, and its text table (`tables`, `pictures`, `frontier`)
    front      the front page of an audit: asked, done, supported, and whether the audits can see
    pages      a page for every row of an audit
    reading    what the record of an audit says, as facts that all of these share

A record goes in, text comes out: nothing is computed here, and no method or audit is known by name.
"""

from .frontier import pareto_front as pareto_front
