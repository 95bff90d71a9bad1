/** What ssh says on standard error when a connection fails, as an error with its remedy. */
import { shellQuote } from '../shell-quote';
import { DeployError } from './deploy-error';
import { destinationText, type HostTarget } from './host-target';

/** `said`: all of standard error. */
export function explainSsh(target: HostTarget, said: string, exitCode: number | null): DeployError {
  const { host, port } = target;
  const at = destinationText(target);
  const known = port ? `[${host}]:${port}` : host;
  const attempt = `ssh ${port ? `-p ${port} ` : ''}${shellQuote(`${target.user ? `${target.user}@` : ''}${host}`)} true`;
  const last = said.trim().split(/\r?\n/).filter((line) => line.trim() !== '' && !/^(@+$|Warning: Permanently added)/.test(line)).at(-1)?.trim() ?? `ssh ended with code ${exitCode}`;
  const because = (what: string, remedy: string) => new DeployError(`${at}: ${what}`, remedy);
  if (/REMOTE HOST IDENTIFICATION HAS CHANGED/.test(said)) {
    return because('it shows another host key than it did before: it was set up anew, or it is another machine',
      `if it was set up anew: ssh-keygen -R ${shellQuote(known)}, then ${attempt} and compare the fingerprint; else find out who answers there`);
  }
  if (/Host key verification failed|No .* host key is known/.test(said)) {
    return because('its host key is not known here', `compare the fingerprint once: ${attempt}   (or, on a network you trust: ssh-keyscan${port ? ` -p ${port}` : ''} ${host} >> ~/.ssh/known_hosts)`);
  }
  if (/Permission denied|Too many authentication failures/.test(said)) {
    return because(`it refuses the login (${last})`, `give it your key: ssh-copy-id ${port ? `-p ${port} ` : ''}${target.user ? `${target.user}@` : ''}${host}   (passwords are not asked for; ssh-agent, IdentityFile and jump hosts of ~/.ssh/config are used)`);
  }
  if (/Could not resolve hostname/.test(said)) return because('its name is not known', `check the name, give an address, or add it to ~/.ssh/config`);
  if (/Connection refused/.test(said)) return because('nothing listens on its ssh port', 'start its ssh server (systemctl enable --now ssh), or give the port: user@host:port');
  if (/timed out|No route to host|Network is unreachable|Host is down/i.test(said)) return because(`it cannot be reached (${last})`, `is it switched on and on this network? ping ${host}; a jump host goes into ~/.ssh/config (ProxyJump)`);
  if (/Bad configuration option|no such identity|unknown option/i.test(said)) return because(last, `see ~/.ssh/config and --ssh-option; try: ${attempt}`);
  return because(`ssh failed: ${last}`, `try: ${attempt}   then run the same command again; it goes on where it was`);
}
