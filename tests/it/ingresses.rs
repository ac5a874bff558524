//! deploy/proxies/kubernetes: what visitors get while the application's pods are not ready. Traefik runs for real, with its
//! providers for IngressRoute, for Gateway API and for ingress-nginx's annotations, and reads the recipes from a stand-in for
//! the Kubernetes API.
//!
//! Needs kubectl, and Traefik in target/test-venv, where tests/run puts it.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};

use crate::fixture::{Printed, Reply, Sidecar, eventually, exchange, program, put, request};
use crate::manifests::{assert_valid, documents, list, root};
use crate::running::Running;
use crate::server::{Server, applications, curl, curled, test_venv};

fn recipe(name: &str) -> PathBuf {
    root().join("deploy/proxies/kubernetes").join(name)
}

/// A Service of the example's, and the one place where it is found.
fn service(name: &str, address: SocketAddr, ready: bool) -> [Value; 2] {
    let port = json!({"name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP"});
    let labels = json!({"kubernetes.io/service-name": name});
    let conditions = json!({"ready": ready, "serving": ready, "terminating": false});
    [
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "default"},
            "spec": {"type": "ClusterIP", "clusterIP": "10.96.0.9", "ports": [port]},
        }),
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": format!("{name}-1"), "namespace": "default", "labels": labels},
            "addressType": "IPv4",
            "endpoints": [{"addresses": [address.ip()], "conditions": conditions}],
            "ports": [{"name": "http", "port": address.port(), "protocol": "TCP"}],
        }),
    ]
}

/// A shop with a sidecar, and Traefik in front of them.
struct Shop {
    sidecar: Sidecar,
    application: Server,
    api: Server,
    recipe: Vec<Value>,
    _traefik: Running,
    address: SocketAddr,
}

impl Shop {
    /// With a recipe, and flags that say how Traefik reads it. It is ready.
    fn new(file: &str, flags: &[&str]) -> Self {
        let sidecar = Sidecar::start();
        let application = Server::node(5000);
        let mut command = Command::new(test_venv());
        command.arg(applications().join("kubernetes_api.py"));
        let api = Server::start(command);
        let recipe = documents(&[&fs::read_to_string(recipe(file)).unwrap()]).remove(0);
        let (_traefik, address) = traefik(api.address, flags);
        let shop = Self { sidecar, application, api, recipe, _traefik, address };
        shop.applies(true);
        shop.sells();
        shop
    }

    /// Tells Traefik whether the application is ready.
    fn applies(&self, ready: bool) {
        let mut objects = self.recipe.clone();
        for object in &mut objects {
            object["metadata"]["namespace"] = json!("default");
        }
        let listener = json!({"name": "web", "protocol": "HTTP", "port": self.address.port(), "allowedRoutes": {"namespaces": {"from": "Same"}}});
        objects.extend([
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}}),
            json!({"apiVersion": "networking.k8s.io/v1", "kind": "IngressClass", "metadata": {"name": "nginx"}, "spec": {"controller": "k8s.io/ingress-nginx"}}),
            json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "GatewayClass", "metadata": {"name": "traefik"}, "spec": {"controllerName": "traefik.io/gateway-controller"}}),
            json!({
                "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": {"name": "shop", "namespace": "default"},
                "spec": {"gatewayClassName": "traefik", "listeners": [listener]},
            }),
        ]);
        objects.extend(service("shop-web", self.application.address, ready));
        // It publishes addresses that are not ready, so they are given as ready.
        objects.extend(service("shop-maintenance", self.sidecar.traffic, true));
        let file = self.sidecar.path().join("objects.json");
        fs::write(&file, json!(objects).to_string()).unwrap();
        let mut command = curl();
        command.args(["--fail", "--request", "PUT", "--data-binary"]).arg(format!("@{}", file.display()));
        command.arg(format!("http://{}/objects", self.api.address));
        curled(&mut command);
    }

    fn asks(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Reply {
        let mut text = format!("{method} {path} HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n");
        for (name, value) in headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        exchange(self.address, format!("{text}\r\n").as_bytes())
    }

    #[track_caller]
    fn sells(&self) {
        eventually("the shop is there", || self.asks("GET", "/cached", &[]).status == 200);
    }

    /// In maintenance, and so not ready. What follows waits until visitors hear of it.
    fn begins_maintenance(&self) {
        put(&self.sidecar.file(), "Updating <it>");
        eventually("it is in maintenance", || self.sidecar.is_on(Some("Updating <it>")));
        self.applies(false);
    }

    fn ends_maintenance(&self) {
        fs::remove_file(self.sidecar.file()).unwrap();
        eventually("it is over", || self.sidecar.is_off());
        self.applies(true);
    }

    /// Whoever asks for whatever gets the refusal, as it leaves the sidecar.
    #[track_caller]
    fn refuses(&self) {
        eventually("the refusal is shown", || self.asks("GET", "/cached", &[]).body == "Updating <it>\n");
        let html = [("Accept", "text/html"), ("Accept-Language", "de")];
        let json = [("Accept", "application/json"), ("Content-Length", "0")];
        let table = [
            ("GET", "/cached?a=%2F", &html[..]),
            ("HEAD", "/", &html),
            ("POST", "/form", &json),
            ("PUT", "/a/../b", &[]),
        ];
        for (method, path, headers) in table {
            let through = self.asks(method, path, headers);
            // Traefik writes a date of its own; whatever else there is, is the sidecar's.
            let own = |name: &str| ["date", "connection"].contains(&name);
            let sorted = |reply: &Reply| {
                let mut headers: Vec<_> = reply.headers.iter().filter(|(name, _)| !own(name)).cloned().collect();
                headers.sort();
                (reply.status, headers, reply.body.clone())
            };
            let direct = request(self.sidecar.traffic, method, path, headers);
            assert_eq!(sorted(&through), sorted(&direct), "{method} {path}");
            assert_eq!((through.status, through.header("cache-control")), (503, Some("no-store")));
            assert_eq!(
                (through.header("retry-after"), through.header("vary")),
                (Some("60"), Some("Accept, Accept-Language"))
            );
        }
    }
}

/// Starts it at a port that is free. It cannot choose one, and would not say which.
fn traefik(api: SocketAddr, flags: &[&str]) -> (Running, SocketAddr) {
    let program = root().join("target/test-venv/bin/traefik");
    assert!(program.exists(), "{} is missing: run tests/run", program.display());
    loop {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut command = Command::new(&program);
        command.arg(format!("--entryPoints.websecure.address={address}"));
        command.args(["--global.checkNewVersion=false", "--global.sendAnonymousUsage=false", "--log.noColor=true"]);
        command.args(["--providers.providersThrottleDuration=100ms"]);
        command.args(flags.iter().map(|flag| flag.replace("API", &format!("http://{api}"))));
        // Which it would rather believe.
        for variable in ["KUBECONFIG", "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"] {
            command.env_remove(variable);
        }
        let mut traefik = Running::start(command);
        let mut taken = false;
        eventually("Traefik listens", || {
            taken = traefik.child.try_wait().unwrap().is_some();
            taken || TcpStream::connect(address).is_ok()
        });
        let said = traefik.stdout() + &traefik.stderr();
        match taken {
            false => return (traefik, address),
            true => assert!(said.contains("in use"), "{said}"),
        }
    }
}

const INGRESS_ROUTE: [&str; 3] =
    ["--providers.kubernetesCRD=true", "--providers.kubernetesCRD.endpoint=API", "--providers.kubernetesCRD.token=any"];

#[test]
fn traefik_without_empty_services() {
    let shop = Shop::new("traefik.yaml", &INGRESS_ROUTE);
    shop.begins_maintenance();
    shop.refuses();
    // Nothing asks for another page instead: a gRPC call is refused as one.
    let call = shop.asks("POST", "/shop.Shop/Buy", &[("Content-Type", "application/grpc"), ("Content-Length", "0")]);
    assert_eq!((call.status, call.header("grpc-status")), (200, Some("14")));
    shop.ends_maintenance();
    shop.sells();
}

#[test]
fn traefik_with_empty_services() {
    let flags = [&INGRESS_ROUTE[..], &["--providers.kubernetesCRD.allowEmptyServices=true"]].concat();
    let mut shop = Shop::new("traefik.yaml", &flags);
    shop.begins_maintenance();
    shop.refuses();
    // It is the middleware that shows it.
    shop.recipe[0]["spec"]["routes"][0].as_object_mut().unwrap().remove("middlewares").unwrap();
    shop.applies(false);
    eventually("Traefik says so itself", || {
        let reply = shop.asks("GET", "/", &[]);
        reply.status == 503 && !reply.body.contains("Updating")
    });
    shop.ends_maintenance();
    shop.sells();
}

#[test]
fn traefik_asks_before_each_request() {
    let mut shop = Shop::new("traefik.yaml", &INGRESS_ROUTE);
    let text = fs::read_to_string(recipe("traefik-forward-auth.yaml")).unwrap();
    let mut added = documents(&[&text]).remove(0);
    // What its comment says to put into the other.
    let middlewares: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("#     - name: ")).collect();
    let middlewares: Vec<_> = middlewares.iter().map(|name| json!({"name": name})).collect();
    assert_eq!(middlewares[1..], list(&shop.recipe[0]["spec"]["routes"][0]["middlewares"])[..]);
    shop.recipe[0]["spec"]["routes"][0]["middlewares"] = json!(middlewares);
    // Nobody here knows the Service's name.
    let host = format!("{}.default.svc.cluster.local", added[1]["metadata"]["name"].as_str().unwrap());
    let address = &mut added[0]["spec"]["forwardAuth"]["address"];
    *address = json!(address.as_str().unwrap().replace(&host, &shop.sidecar.admin.to_string()));
    shop.recipe.extend(added);
    shop.applies(true);
    let asked = || shop.sidecar.metric("pitstop_requests_total{outcome=\"refused\"}");
    put(&shop.sidecar.file(), "Updating <it>");
    eventually("it is in maintenance", || shop.sidecar.is_on(Some("Updating <it>")));
    // Pods are ready all the while.
    shop.refuses();
    assert!(asked() > 0.0);
    fs::remove_file(shop.sidecar.file()).unwrap();
    shop.sells();
    shop.sidecar.signal("KILL");
    eventually("it is not there", || shop.asks("GET", "/cached", &[]).status == 500);
}

#[test]
fn ingress_nginx() {
    let prefix = "--providers.kubernetesIngressNGINX";
    let settings = ["=true", ".endpoint=API", ".token=any", ".httpEntryPoint=websecure"];
    let flags = settings.map(|setting| format!("{prefix}{setting}"));
    let mut shop = Shop::new("ingress-nginx.yaml", &flags.each_ref().map(String::as_str));
    shop.begins_maintenance();
    shop.refuses();
    // It is the annotation that shows it.
    shop.recipe[0]["metadata"].as_object_mut().unwrap().remove("annotations").unwrap();
    shop.applies(false);
    eventually("nobody shows it", || !shop.asks("GET", "/", &[]).body.contains("Updating"));
    shop.ends_maintenance();
    shop.sells();
}

/// What a `kubectl patch` in the recipe's comments makes of it: the first turns it on, the second off.
fn patched(file: &str, number: usize) -> Value {
    let text = fs::read_to_string(recipe(file)).unwrap();
    let commands: Vec<_> =
        text.lines().filter_map(|line| line.strip_prefix("#   kubectl patch httproute shop ")).collect();
    assert_eq!(commands.len(), 2);
    let script = format!("exec kubectl patch --local -o json -f {} {}", recipe(file).display(), commands[number]);
    program("kubectl");
    let printed: Printed = program("sh").args(["-c", &script]).output().unwrap().into();
    assert_eq!(printed.code, Some(0), "{}", printed.stderr);
    serde_json::from_str(&printed.stdout).unwrap()
}

#[test]
fn gateway_api() {
    let prefix = "--providers.kubernetesGateway";
    let flags = ["=true", ".endpoint=API", ".token=any"].map(|setting| format!("{prefix}{setting}"));
    let file = "gateway-api.yaml";
    let mut shop = Shop::new(file, &flags.each_ref().map(String::as_str));
    shop.begins_maintenance();
    eventually("the Gateway says so itself", || {
        let reply = shop.asks("GET", "/", &[]);
        reply.status >= 500 && !reply.body.contains("Updating")
    });
    shop.recipe[0] = patched(file, 0);
    shop.applies(false);
    shop.refuses();
    shop.ends_maintenance();
    let off = patched(file, 1);
    assert_eq!(off, unpatched(file));
    shop.recipe[0] = off;
    shop.applies(true);
    shop.sells();
}

/// The recipe as it is.
fn unpatched(file: &str) -> Value {
    documents(&[&fs::read_to_string(recipe(file)).unwrap()]).remove(0).remove(0)
}

#[test]
fn the_recipes_are_valid() {
    let files: Vec<_> = fs::read_dir(recipe("")).unwrap().map(|entry| entry.unwrap().path()).collect();
    let manifests: Vec<_> =
        files.into_iter().filter(|file| file.extension().is_some_and(|end| end == "yaml")).collect();
    assert!(manifests.len() >= 3, "{manifests:?}");
    assert_valid(&[], &manifests);
    // They name Services that the example has.
    let example = fs::read_to_string(root().join("deploy/rendered/shop.yaml")).unwrap();
    let objects = documents(&[&example]).remove(0);
    let services: Vec<_> =
        objects.iter().filter(|object| object["kind"] == "Service").map(|object| &object["metadata"]["name"]).collect();
    assert_eq!(services, ["shop-maintenance", "shop-web"]);
    for file in manifests {
        if file == recipe("traefik-forward-auth.yaml") {
            // It brings its own, which reaches the same pods as the one for the refusal.
            let added = documents(&[&fs::read_to_string(&file).unwrap()]).remove(0).remove(1);
            let is_refusal =
                |object: &&Value| object["kind"] == "Service" && object["metadata"]["name"] == "shop-maintenance";
            let refusal = objects.iter().find(is_refusal).unwrap();
            let refusal = refusal["spec"].as_object().unwrap();
            let mut spec = added["spec"].clone();
            assert_eq!(spec["ports"][0]["targetPort"], "pitstop-admin");
            spec["ports"][0]["targetPort"] = json!("pitstop");
            assert_eq!(spec.as_object().unwrap(), refusal);
            continue;
        }
        for object in documents(&[&fs::read_to_string(&file).unwrap()]).remove(0) {
            for named in named(&object) {
                assert!(services.contains(&named), "{}: {named}", file.display());
            }
        }
    }
}

/// The Services that an object names.
fn named(object: &Value) -> Vec<&Value> {
    let mut found = Vec::new();
    found.extend(object.pointer("/metadata/annotations/nginx.ingress.kubernetes.io~1default-backend"));
    found.extend(object.pointer("/spec/rules/0/http/paths/0/backend/service/name"));
    found.extend(object.pointer("/spec/errors/service/name"));
    for services in ["/spec/rules/0/backendRefs", "/spec/routes/0/services"] {
        found.extend(object.pointer(services).into_iter().flat_map(list).map(|service| &service["name"]));
    }
    assert!(!found.is_empty(), "{object}");
    found
}
