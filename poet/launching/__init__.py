"""One description of a job, launched anywhere: this machine, SLURM, TPU VMs, GKE, SkyPilot, a container.

A description (`job`) becomes the plan of a backend (`backends/`, a file each), which `lint` checks and `launch` prints
or carries out.  `fit` asks the compilers first whether the job fits its hardware.
"""
