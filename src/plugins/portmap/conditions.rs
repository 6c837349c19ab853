//! `conditionsV4` and `conditionsV6`: further conditions on what is forwarded, as words that `iptables` or `nft` would
//! take, read into what both kinds of rules can say.

use std::net::IpAddr;

use ipnet::IpNet;
use nix::libc;

use crate::cni::names::parse_ip;
use crate::cni::{Error, Result};
use crate::kernel::nft::{Condition, Family, Route, Side, Statement};

/// The words for one family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conditions {
    /// The configuration's key, for messages.
    key: &'static str,
    words: Vec<String>,
}

/// Whose words they are, as their first one tells: no condition of nft begins with a hyphen or an exclamation mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Language {
    /// `["!", "-d", "192.0.2.0/24"]`
    Iptables,
    /// `["ip", "daddr", "!=", "192.0.2.0/24"]`
    Nft,
}

/// One condition: alternatives of which one must hold, or none when it is turned round.
struct Clause {
    any: Vec<Statement>,
    not: bool,
}

impl Conditions {
    /// The words of a configuration's key, checked.
    ///
    /// # Errors
    /// The first word that cannot be expressed.
    pub fn new(key: &'static str, words: Option<Vec<String>>, family: Family) -> Result<Conditions> {
        let conditions = Conditions { key, words: words.unwrap_or_default() };
        // Left out they would leave the port to everybody.
        if let Some(blank) = conditions.words.iter().find(|word| word.trim().is_empty()) {
            return Err(not_a_condition(key, blank));
        }
        conditions.alternatives(family, libc::IPPROTO_TCP as u8)?;
        Ok(conditions)
    }

    /// Whose words they are; `None` when there are none.
    pub fn language(&self) -> Option<Language> {
        let first = self.words.first()?;
        Some(if first.starts_with(['-', '!']) { Language::Iptables } else { Language::Nft })
    }

    /// The conditions for mappings of this protocol, as the alternatives that a rule each is for: one, without
    /// statements, when there are no conditions.
    ///
    /// # Errors
    /// The first word that cannot be expressed.
    pub fn alternatives(&self, family: Family, protocol: u8) -> Result<Vec<Vec<Statement>>> {
        let clauses = match self.language() {
            None => Vec::new(),
            Some(language) => {
                let mut reader =
                    Reader { key: self.key, words: self.split(language), at: 0, family, protocol };
                reader.clauses(language)?
            }
        };
        let mut alternatives: Vec<Vec<Statement>> = vec![Vec::new()];
        for clause in clauses {
            if clause.not {
                alternatives.iter_mut().for_each(|all| all.extend(clause.any.iter().cloned().map(inverted)));
            } else {
                let with = |one: &Statement| {
                    alternatives
                        .iter()
                        .map(|all| [all.as_slice(), std::slice::from_ref(one)].concat())
                        .collect()
                };
                let more: Vec<Vec<Vec<Statement>>> = clause.any.iter().map(with).collect();
                alternatives = more.concat();
            }
        }
        Ok(alternatives)
    }

    /// iptables gets each string as one argument; nft a text, in which braces and commas need no blanks.
    fn split(&self, language: Language) -> Vec<String> {
        if language == Language::Iptables {
            return self.words.clone();
        }
        let text = self.words.join(" ");
        let spaced = ["{", "}", ","].iter().fold(text, |text, mark| text.replace(mark, &format!(" {mark} ")));
        spaced.split_whitespace().map(str::to_owned).collect()
    }
}

fn not_a_condition(key: &str, word: &str) -> Error {
    Error::config(format!("{key}: {word:?} is not a condition that port mappings can have"))
}

fn inverted(statement: Statement) -> Statement {
    match statement {
        Statement::Within { side, net, inside } => Statement::Within { side, net, inside: !inside },
        Statement::Only(condition) => Statement::Unless(condition),
        other => other,
    }
}

/// Reads words from first to last.
struct Reader {
    key: &'static str,
    words: Vec<String>,
    at: usize,
    family: Family,
    protocol: u8,
}

impl Reader {
    fn next(&mut self) -> Option<String> {
        let word = self.words.get(self.at).cloned();
        self.at += usize::from(word.is_some());
        word
    }

    /// The next word, unless it is another one.
    fn skip(&mut self, word: &str) -> bool {
        let found = self.words.get(self.at).is_some_and(|next| next == word);
        self.at += usize::from(found);
        found
    }

    fn need(&mut self, after: &str) -> Result<String> {
        let key = self.key;
        self.next().ok_or_else(|| Error::config(format!("{key}: something must follow {after:?}")))
    }

    fn unknown(&self, word: &str) -> Error {
        not_a_condition(self.key, word)
    }

    fn not_a(&self, what: &str, word: &str) -> Error {
        let key = self.key;
        Error::config(format!("{key}: {word:?} is not {what}"))
    }

    fn clauses(&mut self, language: Language) -> Result<Vec<Clause>> {
        let mut clauses = Vec::new();
        while let Some(word) = self.next() {
            match language {
                Language::Iptables => clauses.extend(self.option(&word)?),
                Language::Nft => clauses.push(self.expression(&word)?),
            }
        }
        Ok(clauses)
    }

    /// One option of iptables with its value; `None` for those that say nothing about a packet.
    fn option(&mut self, word: &str) -> Result<Option<Clause>> {
        let not = word == "!";
        let option = if not { self.need("!")? } else { word.to_owned() };
        let any = match option.as_str() {
            "-s" | "--source" | "--src" => self.listed(&option, |own, text| own.net(Side::Source, text))?,
            "-d" | "--destination" | "--dst" => {
                self.listed(&option, |own, text| own.net(Side::Destination, text))?
            }
            "-i" | "--in-interface" => {
                let name = self.need(&option)?;
                vec![self.link(&name.replace('+', "*"))?]
            }
            "--sport" | "--source-port" => {
                let value = self.need(&option)?;
                let (from, to) = self.ports(&value, ':')?;
                let (side, protocol) = (Side::Source, self.protocol);
                vec![Statement::Only(Condition::Port { side, protocol, from, to })]
            }
            "--mark" => {
                let value = self.need(&option)?;
                let (value, mask) = value.split_once('/').unwrap_or((value.as_str(), "0xffffffff"));
                vec![Statement::Only(Condition::Mark {
                    value: self.number(value)?,
                    mask: self.number(mask)?,
                })]
            }
            "--src-type" | "--dst-type" => {
                let side = if option == "--src-type" { Side::Source } else { Side::Destination };
                let value = self.need(&option)?;
                vec![Statement::Only(Condition::Type(side, self.route(&value.to_ascii_lowercase())?))]
            }
            "-m" | "--match" if !not => {
                let module = self.need(&option)?;
                return match module.as_str() {
                    "mark" | "addrtype" | "comment" | "tcp" | "udp" | "sctp" => Ok(None),
                    _ => Err(self.unknown(&module)),
                };
            }
            "--comment" if !not => {
                self.need(&option)?;
                return Ok(None);
            }
            _ => return Err(self.unknown(&option)),
        };
        Ok(Some(Clause { any, not }))
    }

    /// A value, or several with commas between.
    fn listed(
        &mut self,
        option: &str,
        read: impl Fn(&Reader, &str) -> Result<Statement>,
    ) -> Result<Vec<Statement>> {
        let value = self.need(option)?;
        value.split(',').map(|text| read(self, text)).collect()
    }

    /// One expression of nft, whose first word this is.
    fn expression(&mut self, word: &str) -> Result<Clause> {
        let word = if word == "meta" { self.need(word)? } else { word.to_owned() };
        match word.as_str() {
            "ip" | "ip6" if word == self.family.to_string() => {
                let side = self.side(&word)?;
                self.compared(|own, text| own.net(side, text))
            }
            "iifname" => self.compared(|own, text| own.link(text.trim_matches('"'))),
            "mark" => {
                let mask = match self.skip("&") || self.skip("and") {
                    true => {
                        let word = self.need("&")?;
                        self.number(&word)?
                    }
                    false => u32::MAX,
                };
                self.compared(|own, text| {
                    Ok(Statement::Only(Condition::Mark { value: own.number(text)?, mask }))
                })
            }
            "fib" => {
                let side = self.side(&word)?;
                if !self.skip("type") {
                    let word = self.need("fib")?;
                    return Err(self.unknown(&word));
                }
                self.compared(|own, text| Ok(Statement::Only(Condition::Type(side, own.route(text)?))))
            }
            "th" | "tcp" | "udp" | "sctp" => {
                if !self.skip("sport") {
                    let word = self.need(&word)?;
                    return Err(self.unknown(&word));
                }
                let protocol = super::conf::protocol_number(&word).unwrap_or(self.protocol);
                let clause = self.compared(|own, text| {
                    let (from, to) = own.ports(text, '-')?;
                    Ok(Statement::Only(Condition::Port { side: Side::Source, protocol, from, to }))
                })?;
                // Another protocol has no such port: the condition never holds.
                Ok(if protocol == self.protocol { clause } else { Clause { any: Vec::new(), not: false } })
            }
            _ => Err(self.unknown(&word)),
        }
    }

    /// `saddr` or `daddr`.
    fn side(&mut self, after: &str) -> Result<Side> {
        match self.need(after)?.as_str() {
            "saddr" => Ok(Side::Source),
            "daddr" => Ok(Side::Destination),
            word => Err(self.unknown(word)),
        }
    }

    /// `VALUE`, `!= VALUE`, `{ VALUE, VALUE }`.
    fn compared(&mut self, read: impl Fn(&Reader, &str) -> Result<Statement>) -> Result<Clause> {
        let not = self.skip("!=");
        let _equals = !not && self.skip("==");
        let mut any = Vec::new();
        if self.skip("{") {
            while !self.skip("}") {
                let word = self.need("{")?;
                if word != "," {
                    any.push(read(self, &word)?);
                }
            }
            // Not one of none: always so.
            if any.is_empty() {
                return Err(self.unknown("{ }"));
            }
        } else {
            let word = self.need(if not { "!=" } else { "a condition" })?;
            any.push(read(self, &word)?);
        }
        Ok(Clause { any, not })
    }

    fn link(&self, name: &str) -> Result<Statement> {
        match name {
            "" => Err(self.not_a("the name of a link", name)),
            name => Ok(Statement::Only(Condition::InputName(name.to_owned()))),
        }
    }

    fn net(&self, side: Side, text: &str) -> Result<Statement> {
        let address = |text| parse_ip(text).map(IpNet::from);
        let net = text.parse::<IpNet>().ok().or_else(|| address(text));
        let own = |net: &IpNet| Family::of(net.addr()) == self.family;
        match net.or_else(|| self.masked(text)).filter(own) {
            Some(net) => Ok(Statement::Within { side, net, inside: true }),
            None => Err(self.not_a("an address or network of this family", text)),
        }
    }

    /// `10.0.0.0/255.0.0.0`, as iptables takes it.
    fn masked(&self, text: &str) -> Option<IpNet> {
        let (address, mask) = text.split_once('/')?;
        let (address, mask): (IpAddr, IpAddr) = (address.parse().ok()?, mask.parse().ok()?);
        IpNet::with_netmask(address, mask).ok()
    }

    fn ports(&self, text: &str, between: char) -> Result<(u16, u16)> {
        let (from, to) = text.split_once(between).unwrap_or((text, text));
        match (from.parse(), to.parse()) {
            (Ok(from), Ok(to)) if from <= to => Ok((from, to)),
            _ => Err(self.not_a("a port or a range of ports", text)),
        }
    }

    fn number(&self, text: &str) -> Result<u32> {
        let number = match text.strip_prefix("0x") {
            Some(digits) => u32::from_str_radix(digits, 16),
            None => text.parse(),
        };
        number.map_err(|_| self.not_a("a mark", text))
    }

    fn route(&self, text: &str) -> Result<Route> {
        Route::ALL
            .into_iter()
            .find(|route| route.name() == text)
            .ok_or_else(|| self.not_a("an address type", text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::nft::{Dialect, Rule, Table, program};

    fn read(words: &[&str], family: Family) -> Result<Conditions> {
        Conditions::new("conditionsV4", Some(words.iter().map(|word| (*word).into()).collect()), family)
    }

    /// What is printed of the rules, in one dialect, that also must be something the kernel can have.
    fn shown(words: &[&str], family: Family, dialect: Dialect) -> Vec<String> {
        let all = read(words, family).unwrap().alternatives(family, 6).unwrap();
        let printed = all.into_iter().map(|statements| {
            let table = Table { family, name: "t" };
            let rule = Rule { table, chain: "c".into(), statements, comment: None, tag: None, dialect };
            program(&rule).unwrap();
            rule.to_string()
        });
        let start = match dialect {
            Dialect::Nft => format!("{family} t c"),
            Dialect::Iptables if family == Family::Ip => "iptables -t t -A c".into(),
            Dialect::Iptables => "ip6tables -t t -A c".into(),
        };
        printed.map(|text| text[start.len()..].trim().to_owned()).collect()
    }

    #[test]
    fn words_of_either_tool_become_rules_of_both() {
        for (words, nft, iptables) in [
            (&["-s", "10.0.0.0/8"][..], "ip saddr 10.0.0.0/8", "-s 10.0.0.0/8"),
            (&["!", "-d", "192.0.2.0/24"], "ip daddr != 192.0.2.0/24", "! -d 192.0.2.0/24"),
            (&["ip", "daddr", "!=", "192.0.2.0/24"], "ip daddr != 192.0.2.0/24", "! -d 192.0.2.0/24"),
            (&["-s", "10.0.0.0/255.0.0.0"], "ip saddr 10.0.0.0/8", "-s 10.0.0.0/8"),
            (&["-i", "eth+"], "iifname \"eth*\"", "-i eth+"),
            (&["iifname", "!=", "\"eth0\""], "iifname != \"eth0\"", "! -i eth0"),
            (&["--sport", "1024:2047"], "tcp sport 1024-2047", "-m tcp --sport 1024:2047"),
            (&["th sport != 1024-2047"], "tcp sport != 1024-2047", "-m tcp ! --sport 1024:2047"),
            (&["-m", "mark", "--mark", "0x5/0xf"], "meta mark & 0xf == 0x5", "-m mark --mark 0x5/0xf"),
            (&["meta mark & 0xf != 5"], "meta mark & 0xf != 0x5", "-m mark ! --mark 0x5/0xf"),
            (&["mark 7"], "meta mark == 0x7", "-m mark --mark 0x7"),
            (
                &["-m", "addrtype", "!", "--src-type", "LOCAL"],
                "fib saddr type != local",
                "-m addrtype ! --src-type LOCAL",
            ),
            (
                &["fib", "daddr", "type", "local", "ip", "saddr", "1.2.3.4"],
                "fib daddr type local ip saddr 1.2.3.4",
                "-s 1.2.3.4/32 -m addrtype --dst-type LOCAL",
            ),
        ] {
            assert_eq!(shown(words, Family::Ip, Dialect::Nft), [nft], "{words:?}");
            assert_eq!(shown(words, Family::Ip, Dialect::Iptables), [iptables], "{words:?}");
        }
        assert_eq!(shown(&[], Family::Ip, Dialect::Nft), [""]);
        assert!(shown(&["udp sport 5"], Family::Ip, Dialect::Nft).is_empty(), "never, for TCP");
        assert_eq!(shown(&["-s", "fd00::/8"], Family::Ip6, Dialect::Nft), ["ip6 saddr fd00::/8"]);
    }

    #[test]
    fn lists_are_several_rules_and_their_opposites_one() {
        for words in
            [&["-s", "1.1.1.1,2.0.0.0/8", "-i", "eth0"][..], &["ip saddr {1.1.1.1, 2.0.0.0/8} iifname eth0"]]
        {
            assert_eq!(
                shown(words, Family::Ip, Dialect::Nft),
                ["ip saddr 1.1.1.1 iifname \"eth0\"", "ip saddr 2.0.0.0/8 iifname \"eth0\""]
            );
        }
        assert_eq!(
            shown(&["ip", "saddr", "!=", "{ 1.1.1.1, 2.2.2.2 }"], Family::Ip, Dialect::Nft),
            ["ip saddr != 1.1.1.1 ip saddr != 2.2.2.2"]
        );
    }

    #[test]
    fn what_cannot_be_expressed_is_named() {
        for (words, says) in [
            (
                &["-m", "set", "--match-set", "x", "src"][..],
                "conditionsV4: \"set\" is not a condition that port mappings can have",
            ),
            (&["-o", "eth0"], "conditionsV4: \"-o\" is not a condition that port mappings can have"),
            (&["-s"], "conditionsV4: something must follow \"-s\""),
            (&["-s", "fd00::1"], "conditionsV4: \"fd00::1\" is not an address or network of this family"),
            (&["--sport", "9:1"], "conditionsV4: \"9:1\" is not a port or a range of ports"),
            (
                &["ip6", "saddr", "::1"],
                "conditionsV4: \"ip6\" is not a condition that port mappings can have",
            ),
            (&["ct state new"], "conditionsV4: \"ct\" is not a condition that port mappings can have"),
            (&["tcp dport 80"], "conditionsV4: \"dport\" is not a condition that port mappings can have"),
            (&["ip saddr { 1.1.1.1"], "conditionsV4: something must follow \"{\""),
            (
                &["", "-s", "192.0.2.0/24"],
                "conditionsV4: \"\" is not a condition that port mappings can have",
            ),
            (
                &["", "ip saddr 192.0.2.0/24"],
                "conditionsV4: \"\" is not a condition that port mappings can have",
            ),
            (&[""], "conditionsV4: \"\" is not a condition that port mappings can have"),
            (&[" \t"], "conditionsV4: \" \\t\" is not a condition that port mappings can have"),
            (&["-s", "192.0.2.1", ""], "conditionsV4: \"\" is not a condition that port mappings can have"),
            (&["ip saddr != { }"], "conditionsV4: \"{ }\" is not a condition that port mappings can have"),
            (&["iifname \"\""], "conditionsV4: \"\" is not the name of a link"),
            (&["fib saddr type nowhere"], "conditionsV4: \"nowhere\" is not an address type"),
        ] {
            assert_eq!(read(words, Family::Ip).unwrap_err().msg(), says);
        }
    }
}
