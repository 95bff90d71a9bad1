/** The figures of a load as a table. */
import type { LoadFigures, Recovery } from './load-run';

export function reportText(figures: LoadFigures): string {
  const kib = (bytes: number) => `${(bytes / 1024).toFixed(1)} KiB`;
  const mib = (bytes: number) => `${(bytes / 1024 / 1024).toFixed(0)} MiB`;
  const ms = (value: number | null) => (value === null ? '-' : `${value} ms`);
  const rows: [string, string][] = [
    ['agents', `${figures.agents}, ${figures.connected} connected within ${figures.connectSeconds.toFixed(1)} s`],
    ['connections', `${figures.tcpConnections} TCP, ${figures.tlsSessions} TLS sessions, ${figures.certificates} certificates`],
    ['λ to all, applied', `p50 ${ms(figures.pushP50Ms)}, p99 ${ms(figures.pushP99Ms)}, by ${figures.acknowledged}; known to the operator after ${ms(figures.pushSettledMs)} at most`],
    ['cost of a push', `${figures.pushCoordinatorMicros ?? '-'} µs of the coordinator per device, ${figures.pushRedisMicros ?? '-'} µs of Redis, ${figures.pushAgentsMicros ?? '-'} µs of the agents`],
    ['coordinator memory', `${kib(figures.bytesPerDevice)} per device, ${mib(figures.coordinatorRssBytes)} in all; Redis ${mib(figures.redisRssBytes)}`],
    ['steady traffic', `${figures.messagesPerSecond} messages/s`],
    ['processors busy', `coordinator ${figures.coordinatorCpu} (${figures.cpuMicrosPerMessage} µs per message), Redis ${figures.redisCpu}, agents ${figures.agentsCpu}`],
    ['telemetry frames', `${figures.framesSent} sent, ${figures.framesCounted} counted, ${figures.framesShed} shed`],
    ['falsely told offline', String(figures.falseOffline)],
    ...recovery('after a restart', figures.storm),
    ...recovery('after a kill', figures.kill),
    ...Object.entries(figures.streamsEnded).map(([reason, times]): [string, string] => ['streams ended', `${times} × ${reason}`]),
  ];
  const width = Math.max(...rows.map(([name]) => name.length));
  return `${rows.map(([name, value]) => `${name.padEnd(width)}  ${value}`).join('\n')}\n`;
}

function recovery(name: string, figures: Recovery | null): [string, string][] {
  if (!figures) return [];
  const { rollout } = figures;
  const change = rollout ? `; the rollout under way ${rollout.state} after ${(rollout.endedAfterMs / 1000).toFixed(1)} s, applied by ${figures.applied}` : '';
  return [[name, `all back after ${(figures.connectedAfterMs / 1000).toFixed(1)} s, ${figures.consistent ? 'consistent' : 'NOT consistent'}, ${figures.falseOffline} falsely told offline${change}; ${figures.tokensCounted} tokens counted of ${figures.tokensTold} told`]];
}
