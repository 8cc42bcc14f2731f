"""What the converters share: files of other frameworks in, tables of names, whole folders out."""
