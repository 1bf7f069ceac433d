"""Bars in galaxies: is there a bar across this disc? A convolutional network looks at pictures of 64 x 64 pixels.

After Abraham, Aniyan, Kembhavi, Philip & Vaghmare 2018 (MNRAS 477, 894). `simulate` makes galaxies with and without a
bar, `train` teaches a network on them or on real SDSS cut-outs labelled by Galaxy Zoo 2, `evaluate` prints the talk's
table with ours beside it and hides the bars, `crossvalidate` compares several networks, and `predict` gives p(bar) for
any JPEG, PNG or FITS image. `select`, `fetch` and `prepare` make pictures of a catalogue. Read simulate, data, network,
evaluate, occlusion, saliency, figures; then catalogue, fetch, prepare, predict.
"""
