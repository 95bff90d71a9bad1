/**
 * Hosts from a file: one destination a line, or an inventory as Ansible writes them, INI or YAML. Of Ansible's variables
 * ansible_host, ansible_user, ansible_port and ansible_ssh_private_key_file are read, and ours: moefleet_id,
 * moefleet_labels, moefleet_cache, moefleet_model. A host's own value wins over its group's, a child group's over its
 * parent's. What else an inventory says is left alone.
 */
import { UsageFailure } from '../failure';
import { checkTarget, type HostTarget, parseDestination } from './host-target';
import { parseIniInventory } from './inventory-ini';
import type { Inventory, Variables } from './inventory-tree';
import { parseYamlInventory } from './inventory-yaml';

/** `limit`: names of groups and hosts; empty: all. Throws UsageFailure, which names file, line and value. */
export function readInventory(file: string, text: string, limit: readonly string[] = []): HostTarget[] {
  const inventory = parse(file, text);
  const hosts = new Map<string, Variables>();
  const all = [...inventory.groups.keys()];
  // Parents before children, so that the nearer value is written last.
  for (const name of byDepth(inventory, file)) {
    const group = inventory.groups.get(name)!;
    for (const host of membersOf(inventory, name)) hosts.set(host, { ...hosts.get(host), ...group.variables });
  }
  for (const group of inventory.groups.values()) {
    for (const [host, variables] of group.hosts) hosts.set(host, { ...hosts.get(host), ...variables });
  }
  const wanted = limit.length === 0 ? null : new Set(limit.flatMap((name) => {
    if (inventory.groups.has(name)) return [...membersOf(inventory, name)];
    if (hosts.has(name)) return [name];
    throw new UsageFailure(`--limit: ${file} has no group or host "${name}"; it has the groups ${all.filter((one) => one !== 'ungrouped').join(', ') || 'none'}`);
  }));
  const targets = [...hosts].filter(([name]) => !wanted || wanted.has(name)).map(([name, variables]) => targetOf(name, variables, `${file}: `));
  if (targets.length === 0) throw new UsageFailure(`${file} names no hosts`);
  return targets;
}

function parse(file: string, text: string): Inventory {
  if (/\.ya?ml$/i.test(file)) return parseYamlInventory(file, text);
  return parseIniInventory(file, text);
}

function targetOf(name: string, variables: Variables, where: string): HostTarget {
  // A plain list has destinations where an inventory has names.
  const named = /[@:]/.test(name) ? parseDestination(name, where) : { id: name, host: name };
  const port = variables['ansible_port'] ?? variables['ansible_ssh_port'];
  const user = variables['ansible_user'] ?? variables['ansible_ssh_user'];
  const key = variables['ansible_ssh_private_key_file'];
  return checkTarget({
    ...named,
    id: variables['moefleet_id'] ?? named.id,
    host: variables['ansible_host'] ?? variables['ansible_ssh_host'] ?? named.host,
    ...(user === undefined ? {} : { user }),
    ...(port === undefined ? {} : { port: Number(port) }),
    ...(key === undefined ? {} : { identityFile: key }),
    ...pick(variables, 'moefleet_labels', 'labels'), ...pick(variables, 'moefleet_cache', 'cache'), ...pick(variables, 'moefleet_model', 'model'),
  }, where);
}

function pick<K extends string>(variables: Variables, from: string, to: K): { [key in K]?: string } {
  const value = variables[from];
  return value === undefined ? {} : { [to]: value } as { [key in K]?: string };
}

function membersOf(inventory: Inventory, name: string, seen = new Set<string>()): Set<string> {
  // Every group is a child of `all`, whether it says so or not.
  if (name === 'all') return new Set([...inventory.groups.values()].flatMap(({ hosts }) => [...hosts.keys()]));
  const found = new Set<string>();
  if (seen.has(name)) return found;
  seen.add(name);
  const group = inventory.groups.get(name);
  for (const host of group?.hosts.keys() ?? []) found.add(host);
  for (const child of group?.children ?? []) for (const host of membersOf(inventory, child, seen)) found.add(host);
  return found;
}

function byDepth(inventory: Inventory, file: string): string[] {
  const depth = new Map<string, number>();
  const visit = (name: string, at: number) => {
    if (at > inventory.groups.size) throw new UsageFailure(`${file}: group ${name} is a child of itself`);
    if (name !== 'all') depth.set(name, Math.max(depth.get(name) ?? 0, at));
    for (const child of inventory.groups.get(name)?.children ?? []) visit(child, at + 1);
  };
  for (const name of inventory.groups.keys()) if (name !== 'all') visit(name, 1);
  if (inventory.groups.has('all')) depth.set('all', 0);
  return [...depth.keys()].sort((a, b) => depth.get(a)! - depth.get(b)!);
}
