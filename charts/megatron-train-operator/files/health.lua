-- Argo CD health of a MegatronTrainJob: resource.customizations.health.megatrontrain.dev_MegatronTrainJob in argocd-cm.
-- Without it Argo CD calls a job healthy as soon as the object exists.
local health = {status = "Progressing", message = "Waiting for the operator"}
local status = obj.status
if status == nil or status.conditions == nil then
  return health
end
if status.observedGeneration ~= nil and status.observedGeneration ~= obj.metadata.generation then
  health.message = "The operator has not seen the latest change"
  return health
end
local found = {}
for _, condition in ipairs(status.conditions) do
  if condition.status == "True" then
    found[condition.type] = condition
  end
end
local function as(name, condition)
  health.status = name
  health.message = condition.reason .. ((condition.message or "") ~= "" and ": " .. condition.message or "")
  return health
end
if found.Failed then return as("Degraded", found.Failed) end
if found.Succeeded then return as("Healthy", found.Succeeded) end
if found.Stalled then return as("Degraded", found.Stalled) end
if found.Suspended then return as("Suspended", found.Suspended) end
if status.phase == "Queued" then
  return {status = "Suspended", message = "Queued: " .. (status.reason or "")}
end
health.message = (status.phase or "Pending") .. (status.reason and ": " .. status.reason or "")
return health
