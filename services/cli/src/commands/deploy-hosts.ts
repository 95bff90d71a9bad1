/** Which hosts `deploy` and `undeploy` go to, and how they are reached: the flags both have. */
import { readFileSync } from 'node:fs';
import { type Command, Option } from 'commander';
import { collect, integerFrom } from '../argument';
import { UsageFailure } from '../failure';
import { type HostTarget, parseDestination, refuseTwins } from '../deploy/host-target';
import { readInventory } from '../deploy/inventory';
import type { SshOptions } from '../deploy/ssh-link';

export function addSshOptions(command: Command): Command {
  return command
    .option('--ssh-config <file>', 'instead of ~/.ssh/config')
    .option('--ssh-option <option>', 'as ssh -o takes it, such as ProxyJump=gate; may be given several times', collect);
}

export function addHostOptions(command: Command): Command {
  return addSshOptions(command)
    .argument('[hosts...]', 'user@host, host or user@host:port; names of ~/.ssh/config too')
    .option('--inventory <file>', 'hosts from a file: one a line, or an Ansible inventory (INI or YAML)')
    .option('--limit <names>', 'of the inventory these groups and hosts alone, between commas')
    .addOption(new Option('--concurrency <n>', 'hosts at a time').argParser(integerFrom(1, 256)).default(8))
    .option('--log-dir <folder>', 'where each host\'s log goes (default: a folder of the run\'s own in ~/.local/state/moefleet/deploy)');
}

/** Throws UsageFailure. */
export function readHosts(words: readonly string[], options: Readonly<Record<string, unknown>>): HostTarget[] {
  const targets = words.map((word) => parseDestination(word));
  const file = options['inventory'] as string | undefined;
  const limit = options['limit'] as string | undefined;
  if (limit !== undefined && file === undefined) throw new UsageFailure('--limit: it selects from an --inventory, and there is none');
  if (file !== undefined) {
    let text: string;
    try {
      text = readFileSync(file, 'utf8');
    } catch (cause) {
      throw new UsageFailure(`--inventory: "${file}" cannot be read: ${(cause as Error).message}`, { cause });
    }
    targets.push(...readInventory(file, text, limit?.split(',').map((name) => name.trim()).filter(Boolean)));
  }
  if (targets.length === 0) throw new UsageFailure('no hosts; name some (user@host), or give a file with --inventory');
  refuseTwins(targets);
  return targets;
}

export function readSsh(options: Readonly<Record<string, unknown>>): SshOptions {
  const configFile = options['sshConfig'] as string | undefined;
  const given = (options['sshOption'] as string[] | undefined) ?? [];
  const odd = given.find((option) => !/^[A-Za-z]+=./.test(option));
  if (odd !== undefined) throw new UsageFailure(`--ssh-option: "${odd}": expected Name=value, as ssh -o takes it`);
  return { ...(configFile === undefined ? {} : { configFile }), options: given };
}
