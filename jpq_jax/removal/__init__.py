"""Physical removal: channels that are pruned everywhere, or say nothing, leave the program and not only the file.

program.py    a model's function as a flat list of equations
atoms.py      indices that can only go together
labels.py     which index of which axis of which array is which atom
constants.py  what of each array is the same whatever the input
dead.py       which atoms can go, and what keeps the others
smaller.py    the program without them
shrink.py     all of it for a model
"""
