"""`densepath report`: writes one self-contained page about a run, and its charts as PNG files.

run           the files of the run, checked
measures      computes the figures that the page shows
charts        the figures over the steps
bias_charts   the charts of the bias check
drawing       a figure as PNG, and as SVG in the reader's light or dark colours
tokens        the tokens of a sample, each with the colour of its reward
page          the whole page, from templates/report.html.j2
"""
