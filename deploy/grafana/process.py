"""The server processes: processor, memory, files, and what they are."""

from deploy.grafana.panels import Board, Query, facts, graph, number
from deploy.grafana.promql import INSTANCE, OURS, RANGE

_EACH = "{{instance}}"


def _collected(counter: str) -> Query:
    per_second = f"sum by (job, instance, generation) (rate({counter}{{{INSTANCE}}}[{RANGE}]))"
    return Query(f"{per_second} * on (job, instance) group_left () recurra_build_info", "{{instance}} {{generation}}")


NOW = (
    number(
        "Processes",
        Query(f"sum (recurra_workers{{{INSTANCE}}})", "processes"),
        unit="short",
        means="Server processes, over all servers (`--workers`).",
        act="Fewer than were started: one has died and is started anew (`worker_died` in the log), or does not answer "
        "(`worker_not_scraped`), and is ended after a minute (`worker_stuck`).",
    ),
    number(
        "Shortest uptime",
        Query(f"min ((time() - process_start_time_seconds{{{INSTANCE}}}) {OURS})", "uptime"),
        unit="s",
        means="Time since the youngest server started.",
        act="Shorter than expected: it crashed or was restarted; see its log and the orchestrator's.",
    ),
    number(
        "Files, of those allowed",
        Query(f"max (process_open_fds{{{INSTANCE}}} / process_max_fds {OURS})", "used"),
        unit="percentunit",
        red_from=0.8,
        means="File descriptors in use, most of them connections, as a share of what is allowed.",
        act="At 100 % new connections hang without an answer: raise `ulimit -n`, or let callers share connections.",
    ),
    number(
        "Event loop",
        Query(f"max (rate(recurra_loop_cpu_seconds_total{{{INSTANCE}}}[{RANGE}]) / recurra_workers)", "busy"),
        unit="percentunit",
        red_from=0.9,
        means="Time that the event loop's thread works, on the busiest server.",
        act="One core is its bound. Near it, add workers or servers.",
    ),
)

USE = (
    graph(
        "CPU",
        [Query(f"rate(process_cpu_seconds_total{{{INSTANCE}}}[{RANGE}]) {OURS}", _EACH)],
        unit="short",
        width=8,
        means="Processor cores in use by the server, all its threads and workers.",
        act="Much above the event loop's and the model calls' share: something else runs in the process; profile it.",
    ),
    graph(
        "Event loop",
        [Query(f"rate(recurra_loop_cpu_seconds_total{{{INSTANCE}}}[{RANGE}])", _EACH)],
        unit="short",
        width=8,
        means="Processor cores in use by the event loops' threads: at most one for each worker.",
        act="Near the number of workers with steps waiting, add workers or servers.",
    ),
    graph(
        "Tasks",
        [Query(f"recurra_tasks{{{INSTANCE}}}", _EACH)],
        unit="short",
        width=8,
        means="Unfinished tasks of the event loops: calls in progress, and what the server does of its own.",
        act="Growing while streams and calls do not: a leak; report it.",
    ),
    graph(
        "Memory",
        [
            Query(f"process_resident_memory_bytes{{{INSTANCE}}} {OURS}", "{{instance}} resident"),
            Query(f"process_virtual_memory_bytes{{{INSTANCE}}} {OURS}", "{{instance}} address space"),
        ],
        unit="bytes",
        width=12,
        logarithmic=True,
        means="Memory in use, and address space, which says little of a process that maps models.",
        act="Resident growing while 'Memory of states' does not: a leak; report it with the time of its beginning.",
    ),
    graph(
        "Open files",
        [
            Query(f"process_open_fds{{{INSTANCE}}} {OURS}", "{{instance}}"),
            Query(f"process_max_fds{{{INSTANCE}}} {OURS}", "{{instance}} limit"),
        ],
        unit="short",
        width=12,
        logarithmic=True,
        means="File descriptors in use, most of them connections, and how many are allowed.",
        act="Near the limit, connections are refused: raise `ulimit -n`, or let callers share connections.",
    ),
)

GARBAGE = (
    graph(
        "Garbage collections",
        [_collected("python_gc_collections_total")],
        unit="ops",
        means="Runs of Python's garbage collector per second, by generation. Those of generation 2 stop the server "
        "longest.",
        act="Often and with a rising p99: fewer, longer-lived sessions and connections help.",
    ),
    graph(
        "Objects collected",
        [_collected("python_gc_objects_collected_total")],
        unit="ops",
        means="Objects per second that the garbage collector freed: those in circles, which are not freed at once.",
        act="Growing with the load: a circle on the way of a step; report it.",
    ),
    graph(
        "Objects not collectable",
        [_collected("python_gc_objects_uncollectable_total")],
        unit="ops",
        means="Objects per second that the garbage collector could not free.",
        act="Any is a leak; report it.",
    ),
)

ABOUT = (
    facts(
        "Servers",
        f"recurra_build_info{{{INSTANCE}}}",
        means="What each server runs.",
        act="Differing versions outside a deployment: one was left behind.",
    ),
    facts(
        "Python",
        f"python_info{{{INSTANCE}}} {OURS}",
        means="The Python that each server runs on.",
        act="Differing ones outside a deployment: one was left behind.",
    ),
)

PROCESS = Board(
    "Recurra: process",
    "recurra-process",
    "The server processes: processor, memory, files, and what they are.",
    ("instance",),
    (("Now", NOW), ("What they use", USE), ("Garbage collection", GARBAGE), ("What they are", ABOUT)),
)
