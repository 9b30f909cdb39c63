"""Which bit-width each output channel gets, 0 for one that goes (AJPQ: Tang, Wei, Li, 2020, arXiv 2011.06231).

find.py         all of it for a model: `find_policy`
network.py      a model's layers, which channels go together, and what they cost
importance.py   which channels of a layer go first
file_size.py    how large a policy's file is
evaluation.py   how accurate a model is under a policy, many policies at a time
allocation.py   policies by rule: uniform, by magnitude, by a Lagrangian
decisions.py    policies from three numbers a layer, within the budget
search.py       policies by trial: at random, by evolution
agent.py        policies by a hierarchical agent; replay.py is its memory
"""
