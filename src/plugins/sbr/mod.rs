//! sbr: what a container sends from an interface's addresses is routed by that interface's routes, whatever other
//! interfaces it has (reference: ipam-and-meta.md section 9). Each address gets a table of its own, and a rule that asks
//! it; the interface's routes move there from the main table.

mod conf;
mod plan;

use self::conf::Conf;
use self::plan::{OWN, Plan};
use super::keys::{Key, Shape, key};
use super::{Kind, Plugin};
use crate::attach::address;
use crate::attach::container::Container;
use crate::attach::undo::or_take_back;
use crate::attach::verify::{self, difference};
use crate::cni::{CniResult, Code, Error, IpConfig, Request, Result, ResultExt};
use crate::kernel::Kernel;
use crate::kernel::rtnl::{Change, Link, RouteSpec, Rule, RuleSpec, Step};

/// The keys of the configuration.
const KEYS: &[Key] = &[
    key(
        "table",
        Shape::Int(1, u32::MAX as i64),
        "only add rules that ask this table; default: a free one each",
    ),
    key("gateways", Shape::List(&Shape::Ip), "default gateways, one of each family; default: the result's"),
    key("addSourceHints", Shape::Bool, "keep the networks' routes in the main table too; default: false"),
];

/// The plugin.
pub struct Sbr;

impl Plugin for Sbr {
    fn name(&self) -> &'static str {
        "sbr"
    }

    fn kind(&self) -> Kind {
        Kind::Meta
    }

    fn about(&self) -> &'static str {
        "routes what leaves from an interface's addresses by that interface's routes"
    }

    fn keys(&self) -> &'static [Key] {
        KEYS
    }

    fn capabilities(&self) -> &'static [Key] {
        &[]
    }

    fn validate(&self, req: &Request) -> Result<()> {
        Conf::new(req).map(drop)
    }

    fn add(&self, req: &Request, kernel: &mut Kernel) -> Result<CniResult> {
        let conf = Conf::new(req)?;
        let prev = req.config.prev_result()?.ok_or_else(|| {
            Error::config("prevResult: missing; sbr must stand behind a plugin that assigns addresses")
        })?;
        let ips = addresses(&prev, &req.ifname)?;
        if ips.is_empty() {
            return Ok(prev);
        }
        let mut container = Container::open(req)?;
        let lock = container.netns.lock()?;
        let link = interface(&mut container, &req.ifname)?;
        let observed = observe(&mut container, &link)?;
        let plan = Plan::new(&conf, &ips, &link.dev(), &observed);
        or_take_back(kernel, |_, undo| {
            let (tables, before) = (plan.tables.clone(), observed.rules.clone());
            undo.push(move |_| {
                let mut container = Container::open(req)?;
                restore(&mut container, &req.ifname, &ips, &tables, |rule| {
                    !before.contains(rule) && rule.protocol == OWN
                })
            });
            // Nothing leaves the main table before everything is in its new one. Gateways are looked up there, too.
            container.rtnl.apply(&plan.add)?;
            container.rtnl.apply(&plan.move_out)
        })?;
        drop(lock);
        Ok(prev)
    }

    /// The routes go back to the main table: the interface may outlive its rules.
    fn del(&self, req: &Request, kernel: &mut Kernel) -> Result<()> {
        // A configuration that is not valid any more must not keep anything from being cleaned.
        let table = Conf::table_of(req);
        let Some(mut container) = Container::find(req)? else { return Ok(()) };
        let _lock = container.netns.lock()?;
        let mut ips = req
            .config
            .prev_result()
            .ok()
            .flatten()
            .map_or(Vec::new(), |prev| addresses(&prev, &req.ifname).unwrap_or_default());
        let mut routes = Vec::new();
        if let Some(link) = container.rtnl.link(&req.ifname)? {
            if container.is_own(&link, req, kernel.host()?)? == Some(false) {
                return Ok(());
            }
            routes = container.rtnl.routes(link.index)?;
            let present = container.rtnl.addresses(link.index)?;
            ips.extend(present.iter().map(|a| IpConfig { address: a.net, gateway: None, interface: None }));
        }
        let rules = container.rtnl.rules()?;
        let conf = Conf {
            table: table.clone().unwrap_or(None),
            keep_networks: Conf::new(req).is_ok_and(|conf| conf.keep_networks),
            ..Conf::default()
        };
        let made: Vec<&Rule> = ips
            .iter()
            .filter_map(|ip| plan::made(&rules, &routes, ip, &conf))
            .filter(|r| r.protocol == 0)
            .collect();
        let mine =
            |rule: &Rule| plan::is_of(rule, &ips, &None) && (rule.protocol == OWN || made.contains(&rule));
        let tables: Vec<u32> = match table {
            // What is in a table that the user named is the user's.
            Ok(Some(_)) | Err(_) => Vec::new(),
            Ok(None) => rules
                .iter()
                .filter(|rule| mine(rule) && !plan::is_kernels(rule.table))
                .map(|rule| rule.table)
                .collect(),
        };
        restore(&mut container, &req.ifname, &ips, &tables, mine)
    }

    fn check(&self, req: &Request, _kernel: &mut Kernel) -> Result<()> {
        let conf = Conf::new(req)?;
        let prev = verify::prev_result(req)?;
        let ips = addresses(&prev, &req.ifname)?;
        let mut container = Container::open(req)?;
        let link = interface(&mut container, &req.ifname).map_err(|e| e.with_code(Code::CHECK_FAILED))?;
        check(&conf, &prev, &ips, &link, &mut container)
    }

    /// Rules and tables are in the containers, and go with them.
    fn gc(&self, _req: &Request, _kernel: &mut Kernel) -> Result<()> {
        Ok(())
    }

    fn status(&self, req: &Request, kernel: &mut Kernel) -> Result<()> {
        Conf::new(req)?;
        kernel.host()?.rules().map(drop).map_err(|e| {
            e.with_code(Code::NOT_AVAILABLE).with_details("the kernel needs CONFIG_IP_MULTIPLE_TABLES")
        })
    }
}

/// The addresses of the container's interface: those that a result gives it, and those that it gives to none by number.
///
/// # Errors
/// There are no addresses at all.
fn addresses(prev: &CniResult, ifname: &str) -> Result<Vec<IpConfig>> {
    if prev.ips.is_empty() {
        return Err(Error::config(format!(
            "prevResult.ips: empty; there is nothing to route from {ifname:?}"
        )));
    }
    let of = |ip: &&IpConfig| {
        let interface = ip.interface.and_then(|i| prev.interfaces.get(usize::try_from(i).ok()?));
        interface.is_none_or(|interface| interface.name == ifname)
    };
    Ok(prev.ips.iter().filter(of).cloned().collect())
}

fn interface(container: &mut Container, ifname: &str) -> Result<Link> {
    let path = container.netns.path().to_owned();
    let link = container.rtnl.link(ifname)?;
    link.ok_or_else(|| Error::internal(format!("there is no interface {ifname:?} in {path}")))
}

fn observe(container: &mut Container, link: &Link) -> Result<plan::Observed> {
    Ok(plan::Observed {
        rules: container.rtnl.rules()?,
        routes: container.rtnl.routes(link.index)?,
        tables: container.rtnl.tables_in_use()?,
    })
}

/// Removes the rules for addresses that `mine` picks, and moves the interface's routes from `tables` back to the main
/// one.
fn restore(
    container: &mut Container,
    ifname: &str,
    ips: &[IpConfig],
    tables: &[u32],
    mine: impl Fn(&Rule) -> bool,
) -> Result<()> {
    let rules = container.rtnl.rules()?;
    let rules = rules.iter().filter(|rule| plan::is_of(rule, ips, &None) && mine(rule));
    let mut changes: Vec<Change> = rules
        .filter_map(|rule| {
            let (priority, protocol) = (Some(rule.priority), rule.protocol);
            Some(Change::DelRule(RuleSpec { src: rule.src?, table: rule.table, priority, protocol }))
        })
        .collect();
    if let Some(link) = container.rtnl.link(ifname)? {
        let routes = container.rtnl.routes(link.index)?;
        changes.extend(plan::back(&routes, &link.dev(), tables));
    }
    let steps: Vec<Step> = changes.into_iter().map(Step::Change).collect();
    let outcomes = container.rtnl.exchange(&steps)?;
    let failures = outcomes.into_iter().filter_map(Result::err).filter(|e| !e.is_exists() && !e.is_gone());
    Error::all(failures.collect()).map_or(Ok(()), Err)
}

/// For each address: a rule, and in its table the default route and those of the result that lead through its network.
fn check(
    conf: &Conf,
    prev: &CniResult,
    ips: &[IpConfig],
    link: &Link,
    container: &mut Container,
) -> Result<()> {
    let (rules, routes) = (container.rtnl.rules()?, container.rtnl.routes(link.index)?);
    for ip in ips {
        let Some(rule) = plan::made(&rules, &routes, ip, conf) else {
            let table = conf.table.map_or_else(|| "a table".to_owned(), |table| format!("table {table}"));
            return Err(difference(format!(
                "no rule asks {table} for what comes from {}",
                ip.address.addr()
            )));
        };
        if conf.table.is_some() {
            continue;
        }
        let table = Some(rule.table);
        let mut expected: Vec<RouteSpec> = conf.default_route(ip, &link.dev()).into_iter().collect();
        let routes = address::routes(&link.dev(), prev)?;
        let is_moved =
            |r: &RouteSpec| r.table.is_none() && plan::leads_through(r, ip) && !conf.names_gateway(&r.dst);
        expected.extend(routes.into_iter().filter(is_moved));
        expected.iter_mut().for_each(|route| route.table = table);
        verify::specific_routes(&mut container.rtnl, link, &expected)
            .context(format_args!("routes from {}", ip.address.addr()))?;
    }
    Ok(())
}
