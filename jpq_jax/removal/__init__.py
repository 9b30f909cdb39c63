"""Physical removal: channels that are pruned everywhere, or say nothing, leave the program and not only the file.

program.py    a model's function as a flat list of equations, and the groups of primitives that share rules
fixed.py      arrays that depend on neither weights nor inputs, and indices that are taken by such
atoms.py      indices that can only go together
labels.py     which index of which axis of which array is which atom
reshapes.py   likewise, where axes are laid into one or one is split
known.py      what is known of an array
constants.py  what of each array is the same whatever the input
products.py   likewise, of products and convolutions
dead.py       which atoms can go, and what keeps the others
smaller.py    the program without them
shrink.py     all of it for a model
"""
