//! The state as a tree, as graphviz text and as a picture.

use super::gather::{Attached, State};

/// For the terminal.
pub fn tree(state: &State) -> String {
    let mut text = String::new();
    for n in &state.networks {
        let file = n.file.as_ref().map_or("no configuration".to_owned(), |f| f.display().to_string());
        text.push_str(&format!("network {} ({file}): {}\n", n.name, n.plugins.join(", ")));
        for r in &n.ranges {
            text.push_str(&format!("  range {} to {}: {} free\n", r.first, r.last, r.free));
        }
        for a in state.attachments.iter().filter(|a| a.network == n.name) {
            text.push_str(&attachment(a));
        }
        for l in &n.leases {
            let stale = if l.in_use { "" } else { " (stale)" };
            text.push_str(&format!("  lease {}: {} {}{stale}\n", l.address, l.container, l.ifname));
        }
    }
    for a in state.attachments.iter().filter(|a| !state.networks.iter().any(|n| n.name == a.network)) {
        text.push_str(&format!("network {} (no configuration)\n{}", a.network, attachment(a)));
    }
    for b in &state.bridges {
        let addresses: Vec<String> = b.addresses.iter().map(ToString::to_string).collect();
        let up = if b.up { "up" } else { "down" };
        text.push_str(&format!("bridge {} ({up}) {}\n", b.name, addresses.join(" ")));
        b.ports.iter().for_each(|port| text.push_str(&format!("  port {port}\n")));
    }
    for s in &state.stale {
        text.push_str(&format!("stale {}: {}\n", s.what, s.reason));
    }
    for b in &state.broken {
        text.push_str(&format!("broken {b}\n"));
    }
    if text.is_empty() { "nothing is configured or attached\n".to_owned() } else { text }
}

fn attachment(a: &Attached) -> String {
    let bridge = a.bridge.as_ref().map_or(String::new(), |b| format!(" on {b}"));
    let netns = a.netns.as_deref().unwrap_or("namespace not found");
    let (addresses, link) = (a.addresses.join(" "), &a.link);
    format!("  container {} {}: {addresses}\n    {link}{bridge}, {netns}\n", a.container, a.ifname)
}

/// A box, the column it is in, and what it is connected to in the column before.
struct Node {
    id: String,
    label: [String; 2],
    column: usize,
    from: Option<String>,
}

/// Networks, then bridges, then host links, then containers.
fn nodes(state: &State) -> Vec<Node> {
    let mut nodes: Vec<Node> = Vec::new();
    let mut push = |id: String, label: [String; 2], column: usize, from: Option<String>| {
        if !nodes.iter().any(|node| node.id == id) {
            nodes.push(Node { id, label, column, from });
        }
    };
    for n in &state.networks {
        push(format!("network {}", n.name), [n.name.clone(), n.plugins.join(", ")], 0, None);
    }
    for a in &state.attachments {
        let network = format!("network {}", a.network);
        push(network.clone(), [a.network.clone(), String::new()], 0, None);
        let mut from = network;
        if let Some(name) = &a.bridge {
            let addresses = state.bridges.iter().filter(|b| b.name == *name).flat_map(|b| &b.addresses);
            let addresses: Vec<String> = addresses.map(ToString::to_string).collect();
            push(format!("bridge {name}"), [name.clone(), addresses.join(" ")], 1, Some(from));
            from = format!("bridge {name}");
        }
        push(format!("link {}", a.link), [a.link.clone(), a.ifname.clone()], 2, Some(from));
        let label = [a.container.clone(), a.addresses.join(" ")];
        push(format!("container {} {}", a.container, a.link), label, 3, Some(format!("link {}", a.link)));
    }
    for b in &state.bridges {
        let addresses: Vec<String> = b.addresses.iter().map(ToString::to_string).collect();
        push(format!("bridge {}", b.name), [b.name.clone(), addresses.join(" ")], 1, None);
    }
    nodes
}

/// For `dot -Tsvg`.
pub fn dot(state: &State) -> String {
    let mut text = "digraph cni {\n  rankdir=LR; node [shape=box, fontname=\"sans-serif\"];\n".to_owned();
    for Node { id, label: [first, second], from, .. } in nodes(state) {
        text.push_str(&format!("  {} [label={}];\n", quoted(&id), quoted(&format!("{first}\n{second}"))));
        if let Some(from) = from {
            text.push_str(&format!("  {} -> {} [dir=none];\n", quoted(&from), quoted(&id)));
        }
    }
    text + "}\n"
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}

/// For a browser: one column for each kind of thing, and lines between them.
pub fn svg(state: &State) -> String {
    const WIDTH: usize = 230;
    const HEIGHT: usize = 44;
    const STEP_X: usize = 290;
    const STEP_Y: usize = 60;
    let nodes = nodes(state);
    let mut rows = [0; 4];
    let mut places: Vec<(usize, usize)> = Vec::new();
    for node in &nodes {
        places.push((20 + node.column * STEP_X, 50 + rows[node.column] * STEP_Y));
        rows[node.column] += 1;
    }
    let height = 70 + rows.iter().max().unwrap_or(&0) * STEP_Y;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\">\n",
        20 + 4 * STEP_X
    );
    for (n, title) in ["networks", "bridges", "links", "containers"].iter().enumerate() {
        text.push_str(&format!(
            "<text x=\"{}\" y=\"30\" font-weight=\"bold\">{title}</text>\n",
            20 + n * STEP_X
        ));
    }
    for (node, (x, y)) in nodes.iter().zip(&places) {
        let from = node.from.as_ref().and_then(|id| nodes.iter().position(|n| n.id == *id));
        if let Some((from_x, from_y)) = from.and_then(|n| places.get(n)) {
            let (x1, y1, y2) = (from_x + WIDTH, from_y + HEIGHT / 2, y + HEIGHT / 2);
            text.push_str(&format!(
                "<line x1=\"{x1}\" y1=\"{y1}\" x2=\"{x}\" y2=\"{y2}\" stroke=\"#666\"/>\n"
            ));
        }
        text.push_str(&format!(
            "<g><title>{}</title><rect x=\"{x}\" y=\"{y}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" rx=\"5\" fill=\"#eef4fb\" stroke=\"#357\"/>\n",
            escaped(&node.label.join(" "))
        ));
        for (line, label) in node.label.iter().enumerate() {
            let short: String = if label.chars().count() > 34 {
                label.chars().take(33).chain(['…']).collect()
            } else {
                label.clone()
            };
            text.push_str(&format!(
                "<text x=\"{}\" y=\"{}\">{}</text>\n",
                x + 8,
                y + 18 + 16 * line,
                escaped(&short)
            ));
        }
        text.push_str("</g>\n");
    }
    text + "</svg>\n"
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
