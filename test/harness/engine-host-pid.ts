import { readdirSync, readFileSync } from 'node:fs';

/** The engine host of an agent: its only child. */
export function engineHostPid(agentPid: number): number {
  const children = readdirSync('/proc').filter((name) => /^\d+$/.test(name)).filter((pid) => {
    try {
      return Number(/\) \S (\d+)/.exec(readFileSync(`/proc/${pid}/stat`, 'utf8'))![1]) === agentPid;
    } catch {
      return false;
    }
  });
  if (children.length !== 1) throw new Error(`process ${agentPid} has ${children.length} children`);
  return Number(children[0]);
}
