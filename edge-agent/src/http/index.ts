export { AgentHttp, type AgentHttpOptions } from './agent-http';
export { AgentMetrics, type AgentMetricsOptions } from './agent-metrics';
export { modelIdOf } from './model-id';
