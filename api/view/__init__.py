"""What our pages show of a node: values for the templates, without a request or an answer.

==============  ======================================================================
rows            the entries of a directory, in the order asked for
panel           what the narinfo says of a store path, and lines to copy
readme          a README, as safe HTML
filepage        one page of a long file
source          lines of text, highlighted
storelinks      store paths in a text, as links
typed           what a user pasted into the landing page, as a path
recent          the store paths that were opened last
hexdump         bytes as hexadecimal lines
elf             interpreter, run path and libraries of an ELF file
==============  ======================================================================
"""
