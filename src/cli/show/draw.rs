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
    let mappings: String = a.mappings.iter().map(|line| format!("    port {line}\n")).collect();
    format!("  container {} {}: {addresses}\n    {link}{bridge}, {netns}\n{mappings}", a.container, a.ifname)
}

/// A box, the column it is in, and what it is connected to in the columns before.
struct Node {
    id: String,
    column: usize,
    /// Its name, then a line for each thing to know.
    lines: Vec<String>,
    from: Vec<String>,
    is_stale: bool,
}

/// Networks, then bridges, then host links, then containers; what is stale stands last, by itself.
fn nodes(state: &State) -> Vec<Node> {
    let mut nodes: Vec<Node> = Vec::new();
    let mut push = |id: String, column: usize, lines: Vec<String>, from: Option<&str>| {
        let known = nodes.iter_mut().find(|node| node.id == id);
        match (known, from) {
            (Some(node), Some(from)) if !node.from.iter().any(|known| known == from) => {
                node.from.push(from.to_owned());
            }
            (Some(_), _) => {}
            (None, _) => {
                let from = from.map(str::to_owned).into_iter().collect();
                nodes.push(Node { id, column, lines, from, is_stale: false });
            }
        }
    };
    for n in &state.networks {
        let mut lines = vec![n.name.clone(), n.plugins.join(", ")];
        for r in &n.ranges {
            lines.extend([format!("{} to {}", r.first, r.last), format!("{} free", r.free)]);
        }
        if !n.leases.is_empty() {
            let in_use = n.leases.iter().filter(|lease| lease.in_use).count();
            lines.push(format!("leases: {in_use} in use, {} stale", n.leases.len() - in_use));
        }
        push(format!("network {}", n.name), 0, lines, None);
    }
    let bridge = |name: &str| {
        let found = state.bridges.iter().find(|b| b.name == name);
        let addresses = found.map(|b| b.addresses.clone()).unwrap_or_default();
        let down = found.filter(|b| !b.up).map(|_| "down".to_owned());
        std::iter::once(name.to_owned()).chain(addresses).chain(down).collect::<Vec<_>>()
    };
    for a in &state.attachments {
        let network = format!("network {}", a.network);
        push(network.clone(), 0, vec![a.network.clone(), "no configuration".to_owned()], None);
        let mut from = network;
        if let Some(name) = &a.bridge {
            let id = format!("bridge {name}");
            push(id.clone(), 1, bridge(name), Some(&from));
            from = id;
        }
        let link = format!("link {}", a.link);
        push(link.clone(), 2, vec![a.link.clone()], Some(&from));
        // As container engines shorten ids.
        let id: String = a.container.chars().take(12).collect();
        let mut lines = vec![format!("{id} {}", a.ifname)];
        lines.extend(a.addresses.iter().chain(&a.mappings).cloned());
        push(format!("container {} {}", a.container, a.ifname), 3, lines, Some(&link));
    }
    for b in &state.bridges {
        push(format!("bridge {}", b.name), 1, bridge(&b.name), None);
    }
    for s in &state.stale {
        let (id, lines) = (format!("stale {}", s.what), vec![s.what.clone(), s.reason.clone()]);
        nodes.push(Node { id, column: 0, lines, from: Vec::new(), is_stale: true });
    }
    nodes
}

/// For `dot -Tsvg`.
pub fn dot(state: &State) -> String {
    let mut text = "digraph cni {\n  rankdir=LR; node [shape=box, fontname=\"sans-serif\"];\n".to_owned();
    for Node { id, lines, from, is_stale, .. } in nodes(state) {
        let colour = if is_stale { ", color=\"#b03030\"" } else { "" };
        text.push_str(&format!("  {} [label={}{colour}];\n", quoted(&id), quoted(&lines.join("\n"))));
        for from in from {
            text.push_str(&format!("  {} -> {} [dir=none];\n", quoted(&from), quoted(&id)));
        }
    }
    text + "}\n"
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}

/// Sizes in the picture, in pixels.
mod size {
    pub const MARGIN: usize = 20;
    /// Of a box; what is stale has all columns.
    pub const WIDTH: usize = 280;
    pub const STEP: usize = 340;
    pub const LINE: usize = 16;
    pub const GAP: usize = 14;
    /// Of a character, at most, in the font that is asked for.
    pub const CHARACTER: usize = 7;
}

/// For a browser: one column for each kind of thing, and lines between them; a box stands beside the first that hangs
/// from it, so that lines do not cross.
pub fn svg(state: &State) -> String {
    let nodes = nodes(state);
    let mut places: Vec<Option<usize>> = vec![None; nodes.len()];
    let mut below = 50;
    for column in 0..4 {
        let roots = nodes.iter().enumerate().filter(|(_, node)| node.column == column && !node.is_stale);
        for (n, _) in roots {
            place(&nodes, n, &mut places, &mut below);
        }
    }
    for (n, node) in nodes.iter().enumerate().filter(|(_, node)| node.is_stale) {
        if let Some(y) = places.get_mut(n) {
            *y = Some(below);
            below += height(node) + size::GAP;
        }
    }
    let width = 2 * size::MARGIN + 3 * size::STEP + size::WIDTH;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{}\" viewBox=\"0 0 {width} {0}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
        below + size::MARGIN
    );
    for (n, title) in ["networks", "bridges", "links of the host", "containers"].iter().enumerate() {
        let x = size::MARGIN + n * size::STEP;
        text.push_str(&format!("<text x=\"{x}\" y=\"30\" font-weight=\"bold\">{title}</text>\n"));
    }
    // Lines end beside the names.
    let middle = |y: &usize| y + 13;
    for (node, y) in nodes.iter().zip(&places).filter_map(|(node, y)| Some((node, y.as_ref()?))) {
        let left = |column: usize| size::MARGIN + column * size::STEP;
        let sources = nodes.iter().zip(&places).filter(|(other, _)| node.from.contains(&other.id));
        for (other, from_y) in sources.filter_map(|(other, y)| Some((other, y.as_ref()?))) {
            let (x1, x2) = (left(other.column) + size::WIDTH, left(node.column));
            let (y1, y2, bend) = (middle(from_y), middle(y), x2.saturating_sub(30));
            text.push_str(&format!(
                "<path d=\"M{x1} {y1}H{bend}V{y2}H{x2}\" fill=\"none\" stroke=\"#888\"/>\n"
            ));
        }
        let (x, box_height) = (left(node.column), height(node));
        let (box_width, fill, stroke) = match node.is_stale {
            true => (width - 2 * size::MARGIN, "#fdeeee", "#b03030"),
            false => (size::WIDTH, "#eef4fb", "#335577"),
        };
        text.push_str(&format!(
            "<g><title>{}</title><rect x=\"{x}\" y=\"{y}\" width=\"{box_width}\" height=\"{box_height}\" rx=\"5\" \
             fill=\"{fill}\" stroke=\"{stroke}\"/>\n",
            escaped(&node.lines.join("\n"))
        ));
        for (line, label) in node.lines.iter().enumerate() {
            let weight = if line == 0 { " font-weight=\"bold\"" } else { "" };
            let y = y + size::LINE * (line + 1) + 2;
            let label = escaped(&shortened(label, (box_width - 16) / size::CHARACTER));
            text.push_str(&format!("<text x=\"{}\" y=\"{y}\"{weight}>{label}</text>\n", x + 8));
        }
        text.push_str("</g>\n");
    }
    text + "</svg>\n"
}

/// Gives a box and everything that hangs from it its place, from `below` downwards.
fn place(nodes: &[Node], n: usize, places: &mut [Option<usize>], below: &mut usize) {
    let (Some(node), Some(own)) = (nodes.get(n), places.get_mut(n)) else { return };
    if own.is_some() {
        return;
    }
    let y = *below;
    *own = Some(y);
    for (child, _) in nodes.iter().enumerate().filter(|(_, child)| child.from.contains(&node.id)) {
        place(nodes, child, places, below);
    }
    *below = (*below).max(y + height(node) + size::GAP);
}

fn height(node: &Node) -> usize {
    node.lines.len() * size::LINE + 10
}

/// The text in at most so many characters.
fn shortened(text: &str, most: usize) -> String {
    match text.chars().count() > most {
        true => text.chars().take(most.saturating_sub(1)).chain(['…']).collect(),
        false => text.to_owned(),
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
