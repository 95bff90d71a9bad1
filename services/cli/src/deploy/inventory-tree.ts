/** Groups, their hosts and what is said of each, as an inventory has them before anything is inherited. */
export type Variables = Record<string, string>;

export interface Inventory {
  groups: Map<string, Group>;
}

export interface Group {
  hosts: Map<string, Variables>;
  children: Set<string>;
  variables: Variables;
}

export function groupOf(inventory: Inventory, name: string): Group {
  let group = inventory.groups.get(name);
  if (!group) inventory.groups.set(name, group = { hosts: new Map(), children: new Set(), variables: {} });
  return group;
}
