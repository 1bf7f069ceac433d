"""The tables of cases, one for kernels and one for ops: tests, benchmarks and exercises all read these rows."""
