"""`densepath report`: a run directory becomes one self-contained page, and PNGs of its charts.

run           the files of the run, checked
measures      what the page says of them, as arithmetic
charts        the figures over the steps
bias_charts   those of the bias check
drawing       a figure as SVG that follows the reader's light or dark, and as PNG
tokens        a sample's tokens, each on the colour of its reward
page          all of it, through templates/report.html.j2
"""
