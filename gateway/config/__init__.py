"""The configuration: one YAML file, read, filled in, validated and reported on as a whole.

Glossary. A *document* is the file with its environment variables put in and the line of every path kept. A *section* is a
pydantic model of a part of it. A *problem* is one line of a report: where, what was expected, what was found. Values that
may be secret are never repeated in a problem.
"""
