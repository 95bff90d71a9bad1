/** `moefleet fleet init`: makes the authority that coordinators and devices of a fleet are known by. */
import type { Command } from 'commander';
import { addCommonOptions, readCommonOptions } from '../config';
import type { Context } from '../context';
import { jsonText } from '../json-text';
import { pairs } from '../table';
import { shellQuote } from '../shell-quote';

export function addFleet(program: Command, context: Context): void {
  const fleet = program.command('fleet').description('who belongs to the fleet');
  const init = fleet.command('init')
    .description('make a certificate authority, once per fleet')
    .requiredOption('--dir <folder>', 'where its files go; a folder with a fleet in it is refused')
    .option('--name <name>', 'what the fleet is called in certificates', 'fleet')
    .option('--host <names>', 'names and addresses that coordinators are reached at, between commas, for other clients than ours', '')
    .addHelpText('after', `
Makes ca.pem (give it to operators), ca-key.pem (keep it secret: whoever has it is the fleet) and fleet.json. Every
coordinator runs with this folder or a copy of it. Put bundle-key.pub beside them (npm run bundle:keygen -- --dir DIR):
devices pin it when they enrol, and take no release of the agent that it has not signed. Our own agents and commands know a coordinator by the CA alone,
whatever its address; --host is for programs that compare names.

Examples:
  moefleet fleet init --dir fleet
  moefleet fleet init --dir fleet --name north --host coordinator.example.org,10.0.0.5 --json
`);
  addCommonOptions(init, { operator: false }).action(async (options: { dir: string; name: string; host: string }, command: Command) => {
    const { initFleet } = await import('@moefleet/coordinator/main');
    const hosts = options.host.split(',').map((host) => host.trim()).filter(Boolean);
    const made = await initFleet(options.dir, options.name, hosts, Date.now());
    if (readCommonOptions(command, context.env).json) return void context.stdout.write(jsonText(made));
    const dir = shellQuote(options.dir);
    context.stdout.write(`${pairs([
      ['fleet', made.name], ['CA fingerprint', made.fingerprint], ['CA certificate', made.certificateFile], ['CA key', `${made.keyFile} (keep it secret, and keep a copy)`],
    ])}
Next:
  moefleet coordinator run --tls-dir ${dir} --gateway 0.0.0.0:7400
  moefleet token create --ca ${dir}/ca.pem --token-file ${dir}/moefleet-admin.token --uses 10 --ttl 1h      (the coordinator makes that token at its first start)
  moefleet agent run --enrol-token TOKEN --coordinator HOST:7400 --model model.gguf      (on each device)
`);
  });
}
