"""Spectral types of stars from their spectra, with a network of twenty tanh neurons (Sharma et al. 2020).

`python -m examples.stellar_spectra` simulates spectra, fetches the MILES and STELIB libraries, trains, evaluates and
predicts. Reading order: codes (what is predicted), preprocess (from a file's pixels to 580 numbers), readers and data
(files and folders), network (the model and its training), evaluate, predict and compare; then simulate, fetch, figures.
"""
