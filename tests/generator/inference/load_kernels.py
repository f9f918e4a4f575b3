"""Load the kernels, compiled without optimisation, in a process of its own."""

from generator.inference import cpu_kernels

if __name__ == "__main__":
    cpu_kernels.OPTIONS = ("-O0", *cpu_kernels.OPTIONS[1:])
    cpu_kernels.library()
