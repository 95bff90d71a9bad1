/** A host as a command line or an inventory names it. What is unset is left to ~/.ssh/config and to the command's flags. */
import { UsageFailure } from '../failure';

export interface HostTarget {
  /** the device's id in the fleet; names the host in tables and logs */
  id: string;
  /** as ssh is given it: a name of ~/.ssh/config, a host name or an address */
  host: string;
  user?: string;
  port?: number;
  /** private key */
  identityFile?: string;
  labels?: string;
  cache?: string;
  model?: string;
}

const HOST = /^[A-Za-z0-9_][A-Za-z0-9_.-]*$|^[0-9a-fA-F:]*:[0-9a-fA-F:.]+(%[A-Za-z0-9_.-]+)?$/;
const USER = /^[A-Za-z0-9_][A-Za-z0-9_.@\\-]*\$?$/;
const ID = /^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$/;

/** `user@host`, `host`, `host:port`, `user@[v6]:port`. Throws UsageFailure. A word that ssh would take for an option is refused. */
export function parseDestination(text: string, where = ''): HostTarget {
  const match = /^(?:([^@\s]+)@)?(?:\[([^\]\s]+)\]|([^:[\]\s@]+)|([0-9a-fA-F:.]*:[0-9a-fA-F:.]*:[0-9a-fA-F:.%A-Za-z0-9]*))(?::(\d{1,5}))?$/.exec(text);
  const host = match?.[2] ?? match?.[3] ?? match?.[4];
  if (!host) throw new UsageFailure(`${where}"${text}": expected user@host, host or user@[address]:port`);
  return checkTarget({ id: host, host, ...(match![1] ? { user: match![1] } : {}), ...(match![5] ? { port: Number(match![5]) } : {}) }, where);
}

/** The id made well formed; throws UsageFailure, which names what is wrong. */
export function checkTarget(target: HostTarget, where = ''): HostTarget {
  const { host, user, port } = target;
  if (!HOST.test(host)) throw new UsageFailure(`${where}host "${host}": expected a host name or an address`);
  if (user !== undefined && !USER.test(user)) throw new UsageFailure(`${where}user "${user}" of ${host}: expected a user name`);
  if (port !== undefined && !(Number.isInteger(port) && port >= 1 && port <= 65_535)) throw new UsageFailure(`${where}port ${port} of ${host}: expected 1 to 65535`);
  const id = target.id.replaceAll(':', '-').replace(/%.*$/, '').replace(/^[^A-Za-z0-9]+/, '');
  if (!ID.test(id)) throw new UsageFailure(`${where}"${target.id}" makes no device id; up to 63 letters, digits, ".", "_" and "-" do (in an inventory: moefleet_id)`);
  return { ...target, id };
}

/** Every id and every host once. */
export function refuseTwins(targets: readonly HostTarget[]): void {
  const seen = new Map<string, HostTarget>();
  for (const target of targets) {
    const place = `${target.host}:${target.port ?? ''}`;
    for (const key of new Set([`id ${target.id}`, `host ${place}`])) {
      if (seen.has(key)) throw new UsageFailure(`${key.replace(/:$/, '')} is named twice; each device is deployed once, under an id of its own (in an inventory: moefleet_id)`);
      seen.set(key, target);
    }
  }
}

export function destinationText({ user, host, port }: HostTarget): string {
  return `${user ? `${user}@` : ''}${port ? `${host.includes(':') ? `[${host}]` : host}:${port}` : host}`;
}
