"""Contents of the HTML pages: values for the templates, independent of requests and responses.

==============  ======================================================================
rows            the entries of a directory, in the requested order
panel           the narinfo of a store path, and commands to copy
readme          a README as safe HTML
filepage        one page of a long file
source          lines of text, highlighted
highlighter     highlights source text in a process of its own
storelinks      turns store paths in a text into links
typed           parses the text that a user typed or pasted into the landing page
recent          the store paths that were opened last
hexdump         bytes as hexadecimal lines
elf             interpreter, run path and libraries of an ELF file
==============  ======================================================================
"""
