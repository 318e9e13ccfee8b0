"""Records with known contents, each with its schema and its document.

A document says every value once, texts and the words of an `enum` as the contents have them; dates are spelt out, and
numbers may have a comma for thousands. Some documents name another record of the same kind beside it.
"""
