"""What runs on the other side of the walls: a small program of its own, standard library only.

It is started as a fresh interpreter per program and imports nothing of `controlllm`; its modules
import one another relatively, so that they work under any name.

    start       three processes: one that obeys the parent, one that reaps, one that runs the code
    libc        system calls that Python has no function for, by number
    namespaces  a network, processes, and a root folder of its own
    landlock    which files and ports may be reached
    seccomp     which system calls are refused
    limits      memory, processor time, file sizes, privileges
    wire        plain values as JSON, in both directions
    worker      defines the solution and answers calls
    judge       runs the tests; it never runs a line of the solution
    probe       tries to get through each wall
"""
