/** An inventory in Ansible's YAML form: groups with `hosts`, `children` and `vars`, usually all below `all`. */
import { parse } from 'yaml';
import { UsageFailure } from '../failure';
import { groupOf, type Inventory, type Variables } from './inventory-tree';
import { expandRange } from './inventory-ini';

export function parseYamlInventory(file: string, text: string): Inventory {
  let document: unknown;
  try {
    // Anchors may be used, not to blow a small file up to a large one.
    document = parse(text, { maxAliasCount: 100 });
  } catch (cause) {
    throw new UsageFailure(`${file} is no YAML: ${(cause as Error).message.split('\n')[0]}`, { cause });
  }
  const inventory: Inventory = { groups: new Map() };
  for (const [name, body] of entries(document, file)) addGroup(inventory, name, body, file);
  return inventory;
}

function addGroup(inventory: Inventory, name: string, body: unknown, file: string): void {
  const group = groupOf(inventory, name);
  for (const [key, value] of entries(body, `${file}: group ${name}`)) {
    if (key === 'hosts') {
      for (const [pattern, variables] of entries(value, `${file}: hosts of ${name}`)) {
        for (const host of expandRange(pattern, `${file}: `)) group.hosts.set(host, { ...group.hosts.get(host), ...variablesOf(variables, `${file}: host ${host}`) });
      }
    } else if (key === 'children') {
      for (const [child, inner] of entries(value, `${file}: children of ${name}`)) {
        group.children.add(child);
        addGroup(inventory, child, inner, file);
      }
    } else if (key === 'vars') {
      Object.assign(group.variables, variablesOf(value, `${file}: vars of ${name}`));
    } else {
      throw new UsageFailure(`${file}: group ${name} has "${key}"; a group has hosts, children and vars`);
    }
  }
}

/** Values that are no single words, of which Ansible has many, are none that are read here. */
function variablesOf(value: unknown, where: string): Variables {
  return Object.fromEntries(entries(value, where).filter(([, one]) => ['string', 'number', 'boolean'].includes(typeof one)).map(([key, one]) => [key, String(one)]));
}

function entries(value: unknown, where: string): [string, unknown][] {
  if (value === null || value === undefined) return [];
  if (typeof value !== 'object' || Array.isArray(value)) throw new UsageFailure(`${where}: expected a mapping of names`);
  return Object.entries(value);
}
