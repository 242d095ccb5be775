"""The whole subject, taught by measurement: `python -m recurra_training.lessons` trains all there is to see.

plan.py         what is trained, and what is claimed of it
trainings.py    trains it, several at a time, and takes up what was begun
results.py      the figures, and which claims hold
page.py         the page of pictures
table.py        the same as a table for docs/learning.md
"""
