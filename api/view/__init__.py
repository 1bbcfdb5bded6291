"""What our pages show of a node: values for the templates, without a request or an answer.

==============  ======================================================================
rows            the entries of a directory, in the order asked for
panel           what the narinfo says of a store path, and lines to copy
readme          a README, as safe HTML
pages           a long file in pages
source          lines of text, highlighted
storelinks      store paths in a text, as links
typed, recent   of the landing page: what was pasted, what was opened lately
hexdump, elf    bytes, and what a program says of itself
==============  ======================================================================
"""
