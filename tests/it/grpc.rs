//! gRPC through the gate, over `h2c://`: a real server and a real client, PyPI's grpcio in target/test-venv.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::fixture::{Sidecar, eventually, put};
use crate::permits::{enabled, wait_in};
use crate::running::Running;

/// Answers with what it is sent. Prints its port, and what becomes of each call to `Hang` and `Chat`.
const SERVER: &str = r#"
import concurrent.futures, grpc, os, signal, sys, threading
said = threading.Lock()
def say(*words):
    with said: print(*words, flush=True)
def watched(name, context):
    ended = threading.Event()
    def end():
        say(name, 'ended')
        ended.set()
    if not context.add_callback(end): end()
    say(name, 'began')
    return ended
def unary(request, context):
    metadata = dict(context.invocation_metadata())
    context.send_initial_metadata((('x-first', metadata.get('x-text', '')),))
    context.set_trailing_metadata((('x-last-bin', metadata.get('x-data-bin', b'')), ('x-peer', metadata.get('x-forwarded-for', ''))))
    return request
def stream(request, context):
    for _ in range(5): yield request
def collect(requests, context):
    return b''.join(requests)
def chat(requests, context):
    watched('chat', context)
    for request in requests: yield request
def fail(request, context):
    context.set_trailing_metadata((('x-why-bin', bytes(range(256))),))
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, 'größer than 100 %\n')
def fail_late(request, context):
    yield request
    context.abort(grpc.StatusCode.DATA_LOSS, 'half of it')
def fail_early(requests, context):
    next(requests)
    context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, 'enough')
def hang(request, context):
    watched('hang', context).wait()
    return b''
def slow(request, context):
    say('slow began')
    sys.stdin.readline()
    say('slow goes on')
    return request
class Handler(grpc.GenericRpcHandler):
    def service(self, details):
        return {
            '/t.Test/Unary': grpc.unary_unary_rpc_method_handler(unary),
            '/t.Test/Stream': grpc.unary_stream_rpc_method_handler(stream),
            '/t.Test/Collect': grpc.stream_unary_rpc_method_handler(collect),
            '/t.Test/Chat': grpc.stream_stream_rpc_method_handler(chat),
            '/t.Test/Fail': grpc.unary_unary_rpc_method_handler(fail),
            '/t.Test/FailLate': grpc.unary_stream_rpc_method_handler(fail_late),
            '/t.Test/FailEarly': grpc.stream_unary_rpc_method_handler(fail_early),
            '/t.Test/Hang': grpc.unary_unary_rpc_method_handler(hang),
            '/t.Test/Slow': grpc.unary_unary_rpc_method_handler(slow),
        }.get(details.method)
server = grpc.server(
    concurrent.futures.ThreadPoolExecutor(32), handlers=(Handler(),),
    options=[('grpc.max_receive_message_length', -1), ('grpc.max_send_message_length', -1)],
)
say(server.add_insecure_port('127.0.0.1:0'))
server.start()
signal.pause()
"#;

/// What each client begins with.
const CLIENT: &str = r#"
import grpc, json, os, sys, threading, time
channel = grpc.insecure_channel(sys.argv[1], options=[
    ('grpc.enable_http_proxy', 0), ('grpc.enable_retries', 0),
    ('grpc.max_receive_message_length', -1), ('grpc.max_send_message_length', -1),
])
patient = dict(timeout=100)
def to(kind, name): return getattr(channel, kind)('/t.Test/' + name)
def code(call):
    try:
        for _ in call(): pass
        return 'OK'
    except grpc.RpcError as error:
        return error.code().name
def end(result):
    # Not by the interpreter's own end, at which grpcio's threads may hang.
    print(json.dumps(result), flush=True)
    os._exit(0)
# Nor may it wait for ever.
threading.Timer(110, lambda: os._exit(9)).start()
"#;

fn python(script: &str) -> Command {
    let interpreter = std::env::var_os("PITSTOP_TEST_PYTHON")
        .unwrap_or_else(|| OsString::from(Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-venv/bin/python")));
    let mut command = Command::new(interpreter);
    command.args(["-c", script]);
    command
}

/// A server behind a gate.
struct Service {
    gate: Sidecar,
    server: Running,
}

impl Service {
    fn new() -> Self {
        Self::with(&[])
    }

    fn with(flags: &[&str]) -> Self {
        let server = Running::start(python(SERVER));
        eventually("the server listens", || server.stdout().contains('\n'));
        let upstream = format!("h2c://127.0.0.1:{}", server.stdout().trim());
        let gate = Sidecar::with(|command| _ = command.args(["--upstream", &upstream]).args(flags));
        Self { gate, server }
    }

    fn client(&self, script: &str) -> Running {
        let mut command = python(&format!("{CLIENT}{script}"));
        command.arg(self.gate.traffic.to_string());
        Running::start(command)
    }

    /// What a client's call of `end` tells.
    #[track_caller]
    fn ask(&self, script: &str) -> Value {
        told(&mut self.client(script))
    }

    #[track_caller]
    fn says(&self, what: &str) {
        eventually(what, || self.server.stdout().lines().any(|line| line == what));
    }

    fn outcome(&self, outcome: &str) -> f64 {
        self.gate.metric(&format!("pitstop_requests_total{{outcome=\"{outcome}\"}}"))
    }

    fn in_flight(&self) -> f64 {
        self.gate.metric("pitstop_requests_in_flight")
    }
}

/// What the client's call of `end` tells.
#[track_caller]
fn told(client: &mut Running) -> Value {
    eventually("the client ends", || client.stdout().ends_with('\n') || !client.stderr().is_empty());
    let printed = client.ended();
    let last = printed.stdout.lines().last().unwrap_or_else(|| panic!("{}", printed.stderr));
    serde_json::from_str(last).unwrap()
}

#[test]
fn all_kinds_of_calls() {
    let service = Service::new();
    let told = service.ask(
        r#"
small, large = b'hello', os.urandom(3_000_000)
parts = [os.urandom(700_000) for _ in range(6)] + [b'x'] * 1000
end([
    to('unary_unary', 'Unary')(small, **patient) == small,
    to('unary_unary', 'Unary')(b'', **patient) == b'',
    to('unary_unary', 'Unary')(large, **patient) == large,
    list(to('unary_stream', 'Stream')(large, **patient)) == [large] * 5,
    to('stream_unary', 'Collect')(iter(parts), **patient) == b''.join(parts),
    to('stream_unary', 'Collect')(iter([]), **patient) == b'',
    list(to('stream_stream', 'Chat')(iter(parts), **patient)) == parts,
    list(to('stream_stream', 'Chat')(iter([]), **patient)) == [],
])"#,
    );
    assert_eq!(told, json!([true, true, true, true, true, true, true, true]));
    eventually("none is at work", || service.in_flight() == 0.0);
    assert_eq!((service.outcome("forwarded"), service.outcome("failed")), (8.0, 0.0));
}

#[test]
fn a_conversation_goes_back_and_forth() {
    let service = Service::new();
    let told = service.ask(
        r#"
import queue
say, heard = queue.Queue(), []
calls = [to('stream_stream', 'Chat')(iter(queue_of.get, None), **patient) for queue_of in [say]]
for number in range(50):
    say.put(b'%d' % number)
    # Not before the last one has come back.
    heard.append(int(next(calls[0])))
say.put(None)
end([heard == list(range(50)), list(calls[0]), calls[0].code().name])"#,
    );
    assert_eq!(told, json!([true, [], "OK"]));
}

#[test]
fn many_calls_at_once() {
    let service = Service::new();
    let told = service.ask(
        r#"
body = os.urandom(20_000)
calls = [to('unary_unary', 'Unary').future(body, **patient) for _ in range(300)]
end(all(call.result() == body for call in calls))"#,
    );
    assert_eq!(told, json!(true));
    assert_eq!(service.outcome("forwarded"), 300.0);
}

#[test]
fn metadata_and_trailers_both_ways() {
    let service = Service::new();
    let told = service.ask(
        r#"
answer, call = to('unary_unary', 'Unary').with_call(
    b'', metadata=(('x-text', 'a, b'), ('x-data-bin', bytes(range(256)))), **patient)
first, last = dict(call.initial_metadata()), dict(call.trailing_metadata())
end([first['x-first'], last['x-last-bin'] == bytes(range(256)), last['x-peer'], sorted(first), sorted(last)])"#,
    );
    // `date` is the gate's, where the application has given none (RFC 9110 §6.6.1).
    assert_eq!(told, json!(["a, b", true, "127.0.0.1", ["date", "x-first"], ["x-last-bin", "x-peer"]]));
}

#[test]
fn error_statuses_arrive_as_they_are() {
    let service = Service::new();
    let told = service.ask(
        r#"
def failure(call):
    got = []
    try:
        for part in call(): got.append(len(part))
    except grpc.RpcError as error:
        why = dict(error.trailing_metadata()).get('x-why-bin') == bytes(range(256))
        return [error.code().name, error.details(), why, got]
def endless():
    while True: yield b'x' * 10_000
end([
    failure(lambda: [to('unary_unary', 'Fail')(b'', **patient)]),
    failure(lambda: to('unary_stream', 'FailLate')(b'x', **patient)),
    failure(lambda: [to('stream_unary', 'FailEarly')(endless(), **patient)]),
    failure(lambda: [to('unary_unary', 'Missing')(b'', **patient)]),
])"#,
    );
    let expected = json!([
        ["FAILED_PRECONDITION", "größer than 100 %\n", true, []],
        ["DATA_LOSS", "half of it", false, [1]],
        ["RESOURCE_EXHAUSTED", "enough", false, []],
        ["UNIMPLEMENTED", "Method not found!", false, []],
    ]);
    assert_eq!(told, expected);
    // Also the one that was answered before it had been asked in full.
    eventually("none is at work", || service.in_flight() == 0.0);
    assert_eq!(service.outcome("forwarded"), 4.0);
}

#[test]
fn a_deadline_ends_the_call_at_both_ends() {
    let service = Service::new();
    let told = service.ask("end(code(lambda: [to('unary_unary', 'Hang')(b'', timeout=2)]))");
    assert_eq!(told, json!("DEADLINE_EXCEEDED"));
    service.says("hang ended");
}

#[test]
fn a_cancellation_reaches_the_server() {
    let service = Service::new();
    let mut client = service.client(
        r#"
call = to('unary_unary', 'Hang').future(b'', **patient)
chat = to('stream_stream', 'Chat')(iter(sys.stdin.readline, 'end\n'), **patient)
sys.stdin.readline()
call.cancel()
chat.cancel()
end([call.code().name, chat.code().name])"#,
    );
    service.says("hang began");
    service.says("chat began");
    assert_eq!(service.in_flight(), 2.0);
    drop(client.stdin.take());
    assert_eq!(told(&mut client), json!(["CANCELLED", "CANCELLED"]));
    service.says("hang ended");
    service.says("chat ended");
}

#[test]
fn wait_waits_for_a_call_that_runs() {
    let mut service = Service::new();
    let mut client = service.client("end(to('unary_unary', 'Slow')(b'hello', **patient).decode())");
    service.says("slow began");
    let mut wait = wait_in(service.gate.path());
    eventually("the gate is closed", || service.gate.is_on(Some("Updating")));
    wait.keeps_asking();
    assert!(!service.server.stdout().contains("slow goes on"));
    drop(service.server.stdin.take());
    assert_eq!(told(&mut client), json!("hello"));
    assert_eq!(wait.ended(), enabled());
    service.says("slow goes on");
}

#[test]
fn in_maintenance_calls_are_refused() {
    let service = Service::new();
    put(&service.gate.file(), "Größer");
    eventually("it is in maintenance", || service.gate.is_on(Some("Größer")));
    let told = service.ask(
        r#"
def failure(call):
    try:
        for _ in call(): pass
    except grpc.RpcError as error:
        return [error.code().name, error.details()]
end([
    failure(lambda: [to('unary_unary', 'Unary')(b'x', **patient)]),
    failure(lambda: to('stream_stream', 'Chat')(iter([b'x'] * 10), **patient)),
])"#,
    );
    assert_eq!(told, json!([["UNAVAILABLE", "Größer"], ["UNAVAILABLE", "Größer"]]));
    assert!(!service.server.stdout().contains("began"));
}

#[test]
fn what_does_not_finish_is_cut_with_a_status() {
    let service = Service::with(&["--drain-timeout", "1s"]);
    let mut client = service.client(
        r#"
import queue
say = queue.Queue()
chat = to('stream_stream', 'Chat')(iter(say.get, None), **patient)
say.put(b'hello')
heard = next(chat).decode()
hang = to('unary_unary', 'Hang').future(b'', **patient)
print('begun', flush=True)
result = [heard, code(lambda: chat), chat.details(), hang.code().name, hang.details()]
end(result)"#,
    );
    eventually("both calls run", || client.stdout().contains("begun"));
    service.says("chat began");
    service.says("hang began");
    let begun = Instant::now();
    let mut wait = wait_in(service.gate.path());
    assert_eq!(told(&mut client), json!(["hello", "UNAVAILABLE", "Updating", "UNAVAILABLE", "Updating"]));
    assert!(begun.elapsed() >= Duration::from_secs(1));
    service.says("chat ended");
    service.says("hang ended");
    assert_eq!(service.outcome("cut"), 2.0);
    // Nothing tells that the server has heeded it.
    assert_eq!(wait.ended(), enabled());
    assert!(begun.elapsed() >= Duration::from_secs(10), "{:?}", begun.elapsed());
}

#[test]
fn a_server_that_dies_is_unavailable() {
    let mut service = Service::new();
    let mut client = service.client(
        r#"
import queue
say = queue.Queue()
chat = to('stream_stream', 'Chat')(iter(say.get, None), **patient)
say.put(b'hello')
next(chat)
hang = to('unary_unary', 'Hang').future(b'', **patient)
print('begun', flush=True)
result = [code(lambda: chat), hang.code().name, code(lambda: [to('unary_unary', 'Unary')(b'', **patient)])]
end(result)"#,
    );
    eventually("both calls run", || client.stdout().contains("begun"));
    service.says("hang began");
    service.server.signal("KILL");
    assert_eq!(told(&mut client), json!(["UNAVAILABLE", "UNAVAILABLE", "UNAVAILABLE"]));
    eventually("none is at work", || service.in_flight() == 0.0);
    assert_eq!(service.outcome("failed"), 3.0);
    // The third may find the port open still.
    let closed = service.gate.metric("pitstop_upstream_errors_total{cause=\"closed\"}");
    assert!((2.0..=3.0).contains(&closed), "{closed}");
    service.server.status();
}
