/** `moefleet undeploy ssh`: takes everything away that `deploy ssh` has put there. */
import { setMaxListeners } from 'node:events';
import type { Command } from 'commander';
import { addCommonOptions } from '../config';
import type { Context } from '../context';
import { DeployProgress } from '../deploy/deploy-progress';
import { installStep, probe, SERVICE_USER } from '../deploy/device-scripts';
import { fanOut } from '../deploy/fan-out';
import { fleetView, NO_FLEET } from '../deploy/fleet-view';
import { HostLogs } from '../deploy/host-log';
import { destinationText } from '../deploy/host-target';
import { SshLink } from '../deploy/ssh-link';
import { EXIT, Failure } from '../failure';
import { jsonText } from '../json-text';
import { operatorAction, type Run } from '../operator-command';
import { NONE, table } from '../table';
import { addHostOptions, readHosts, readSsh } from './deploy-hosts';

export function addUndeploy(program: Command, context: Context): void {
  const undeploy = addCommonOptions(program.command('undeploy').description('take agents from devices'), { operator: true });
  const ssh = addHostOptions(undeploy.command('ssh').description('stop the agent and remove it, its user, its models and its state'))
    .option('--keep-record', 'leave the device in the list, offline, with its pins, labels and history, for whoever gets its id next; its certificate is refused all the same')
    .option('--keep-device', 'say nothing to the coordinator: the id stays its certificate\'s')
    .addHelpText('after', `
Removes the service, /opt/moefleet, /etc/moefleet, /var/lib/moefleet (models included) and the service user where deploy
made it; without root ~/.moefleet. At the coordinator the device's certificate is refused from then on, its id is free and
its record is gone (moefleet device remove). Run it again after a failure.

Examples:
  moefleet undeploy ssh pi@board-1
  moefleet undeploy ssh pi@board-1 --keep-record            (it comes back with another card)
  moefleet undeploy ssh --inventory hosts.ini --limit jetson --keep-device --json
`);
  addCommonOptions(ssh, { operator: true }).action(operatorAction(context)((run) => undeploySsh(context, run)));
}

async function undeploySsh(context: Context, run: Run): Promise<void> {
  const { options, common } = run;
  const targets = readHosts(run.words, options);
  const ssh = readSsh(options);
  // Without an authority nobody has an identity that could be taken.
  const fleet = options['keepDevice'] || common.ca === '' ? NO_FLEET : await fleetView(run.operator, true, context.signal).catch((cause: Error) => {
    throw new Failure(`${cause.message}; to take the agents away all the same: --keep-device`, undefined, { cause });
  });
  // Each host under way listens for an interruption, more than once.
  setMaxListeners(0, context.signal);
  const logs = new HostLogs(options['logDir'] as string | undefined, Date.now());
  const ids = targets.map(({ id }) => id);
  const progress = new DeployProgress(context.stderr, ids);
  const results = await fanOut(ids, Number(options['concurrency']), async (id, index) => {
    const link = new SshLink(targets[index]!, ssh, context.signal, (line) => logs.write(id, line));
    try {
      progress.update(id, 'connect');
      await link.open();
      const facts = await probe(link, { flash: false });
      progress.update(id, 'remove');
      const said = await installStep(link, facts, SERVICE_USER, 'remove');
      progress.update(id, 'release');
      const released = await fleet.release(id, options['keepRecord'] === true);
      progress.update(id, 'done');
      return { removed: said.includes('found=yes'), released };
    } catch (error) {
      logs.write(id, `failed: ${(error as Error).message}`);
      progress.update(id, 'failed');
      throw error;
    } finally {
      await link.close();
    }
  });
  progress.end();
  const hosts = targets.map((target, i) => {
    const { value, failure } = results[i]!;
    return { id: target.id, destination: destinationText(target), removed: value?.removed ?? null, released: value?.released ?? null, failure, logFile: logs.pathOf(target.id) };
  });
  if (run.json) run.out(jsonText({ hosts, logFolder: logs.folder }));
  else {
    run.out(table(['DEVICE', 'OUTCOME', 'AT THE COORDINATOR'], hosts.map(({ id, removed, released, failure }) => [
      id, failure ? 'FAILED' : removed ? 'removed' : 'nothing was there', failure ? NONE : released ? options['keepRecord'] ? 'id free, record kept' : 'removed' : options['keepDevice'] ? 'kept' : 'was not known',
    ])));
    for (const { id, failure, logFile } of hosts) if (failure) run.out(`\n${id}: ${failure.message}\n  ${failure.remedy}\n  log: ${logFile}\n`);
  }
  if (hosts.some(({ failure }) => failure)) context.setExitCode(context.signal.aborted ? EXIT.interrupted : EXIT.failed);
}
