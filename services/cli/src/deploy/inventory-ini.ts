/** An inventory in Ansible's INI form; a plain list of destinations is the same without sections. */
import { UsageFailure } from '../failure';
import { groupOf, type Inventory, type Variables } from './inventory-tree';

/** More would be a slip of the pen. */
const MOST_HOSTS_OF_A_RANGE = 10_000;

export function parseIniInventory(file: string, text: string): Inventory {
  const inventory: Inventory = { groups: new Map() };
  let section = 'ungrouped';
  let kind = 'hosts';
  text.split(/\r?\n/).forEach((raw, index) => {
    const where = `${file}:${index + 1}: `;
    const line = raw.replace(/(^|\s)[#;].*$/, '').trim();
    if (line === '') return;
    const head = /^\[([^\]:]+)(?::(\w+))?\]$/.exec(line);
    if (head) {
      section = head[1]!.trim();
      kind = head[2] ?? 'hosts';
      if (!['hosts', 'vars', 'children'].includes(kind)) throw new UsageFailure(`${where}[${section}:${kind}]: a section is [group], [group:vars] or [group:children]`);
      groupOf(inventory, section);
      return;
    }
    if (line.startsWith('[')) throw new UsageFailure(`${where}"${line}": a section is [group], [group:vars] or [group:children]`);
    const group = groupOf(inventory, section);
    if (kind === 'children') {
      group.children.add(line);
      groupOf(inventory, line);
    } else if (kind === 'vars') {
      const at = line.indexOf('=');
      if (at < 1) throw new UsageFailure(`${where}"${line}": expected name=value`);
      group.variables[line.slice(0, at).trim()] = unquoted(line.slice(at + 1).trim());
    } else {
      const [name, ...rest] = wordsOf(line);
      const variables: Variables = {};
      for (const word of rest) {
        const at = word.indexOf('=');
        if (at < 1) throw new UsageFailure(`${where}"${word}": expected name=value after the host`);
        variables[word.slice(0, at)] = word.slice(at + 1);
      }
      for (const host of expandRange(name!, where)) group.hosts.set(host, { ...group.hosts.get(host), ...variables });
    }
  });
  return inventory;
}

/** `board[01:10]` names ten boards, `board-[a:c]` three. An address in brackets is left as it is. */
export function expandRange(pattern: string, where = ''): string[] {
  const match = /^(.*)\[(\d+|[a-z]):(\d+|[a-z])\](.*)$/.exec(pattern);
  if (!match || match[1]!.endsWith('@') || match[1] === '') return [pattern];
  const [, before, from, to, after] = match as unknown as [string, string, string, string, string];
  const numeric = /^\d/.test(from);
  if (numeric !== /^\d/.test(to)) throw new UsageFailure(`${where}"${pattern}": a range goes from number to number or from letter to letter`);
  const [low, high] = numeric ? [Number(from), Number(to)] : [from.charCodeAt(0), to.charCodeAt(0)];
  if (high < low || high - low >= MOST_HOSTS_OF_A_RANGE) throw new UsageFailure(`${where}"${pattern}": a range goes upwards, over at most ${MOST_HOSTS_OF_A_RANGE} hosts`);
  return Array.from({ length: high - low + 1 }, (_, i) => (numeric ? String(low + i).padStart(from.length, '0') : String.fromCharCode(low + i)))
    .flatMap((part) => expandRange(`${before}${part}${after}`, where));
}

/** Blanks separate, quotes keep together. */
function wordsOf(line: string): string[] {
  return (line.match(/(?:[^\s"']+|"[^"]*"|'[^']*')+/g) ?? []).map((word) => word.replace(/"([^"]*)"|'([^']*)'/g, '$1$2'));
}

function unquoted(value: string): string {
  return /^(["']).*\1$/.test(value) ? value.slice(1, -1) : value;
}
